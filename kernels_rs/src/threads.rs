//! Independent jobs over threads, and memory that may be refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use rayon::prelude::*;
use rayon::ThreadPool;

/// More threads than any processor has: such a number is a mistake, and trying to start them would hurt.
pub const MOST_THREADS: usize = 1024;

/// Run `work` in a pool of `threads` threads (0: one per core). Pools are kept, per process: threads do not survive a
/// fork.
fn with_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> Result<R, String> {
    type Pools = HashMap<(u32, usize), Arc<ThreadPool>>;
    static POOLS: OnceLock<Mutex<Pools>> = OnceLock::new();
    let key = (std::process::id(), threads);
    let pool = {
        let mut pools = match POOLS.get_or_init(Mutex::default).lock() {
            Ok(pools) => pools,
            Err(poisoned) => poisoned.into_inner(),
        };
        match pools.get(&key) {
            Some(pool) => pool.clone(),
            None => {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| e.to_string())?;
                let pool = Arc::new(pool);
                pools.insert(key, pool.clone());
                pool
            }
        }
    };
    Ok(pool.install(work))
}

/// Run `work` where the [`for_each`] within it find the threads awake.
pub fn within<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> Result<R, String> {
    if threads > MOST_THREADS {
        return Err(format!("threads = {threads} must be at most {MOST_THREADS} (0: one per core)"));
    }
    if threads == 1 {
        return Ok(work());
    }
    with_threads(threads, work)
}

/// Do all `jobs`, in any order, on `threads` threads.
pub fn for_each<J: Send>(threads: usize, jobs: Vec<J>, work: impl Fn(J) + Send + Sync) -> Result<(), String> {
    if threads > MOST_THREADS {
        return Err(format!("threads = {threads} must be at most {MOST_THREADS} (0: one per core)"));
    }
    if threads == 1 || jobs.len() <= 1 {
        jobs.into_iter().for_each(work);
        return Ok(());
    }
    with_threads(threads, || jobs.into_par_iter().with_max_len(1).for_each(work))
}

/// Zeros in the product of `sizes`; an error where that much memory is not there. (`vec!` would end the process.)
pub fn zeros(sizes: &[usize]) -> Result<Vec<f32>, String> {
    let refused = || format!("no memory for an array of shape {sizes:?}");
    let count = sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).ok_or_else(refused)?;
    // Asking first, and then for zeroed memory: large pieces of that come zeroed from the system, page by page.
    Vec::<f32>::new().try_reserve_exact(count).map_err(|_| refused())?;
    Ok(vec![0.0; count])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_requests_are_errors() {
        assert!(zeros(&[usize::MAX, 2]).is_err_and(|e| e.contains("memory")));
        assert!(zeros(&[1 << 40, 1 << 12]).is_err_and(|e| e.contains("memory")));
        assert_eq!(zeros(&[3, 0]).unwrap(), Vec::<f32>::new());
        assert!(for_each(1 << 20, vec![1, 2], |_| ()).is_err_and(|e| e.contains("threads")));
    }
}
