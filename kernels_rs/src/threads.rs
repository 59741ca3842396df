//! Independent jobs over threads, and memory that may be refused.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use rayon::{ThreadPool, Yield};

/// More threads than any processor has: such a number is a mistake, and trying to start them would hurt.
pub const MOST_THREADS: usize = 1024;

/// Run `work` in a pool of `threads` threads (0: one per core). Pools are kept, per process: threads do not survive a
/// fork.
fn with_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> Result<R, String> {
    type Pools = HashMap<(u32, usize), Arc<ThreadPool>>;
    static POOLS: OnceLock<Mutex<Pools>> = OnceLock::new();
    let key = (std::process::id(), threads);
    let pool = {
        let mut pools = lock(POOLS.get_or_init(Mutex::default));
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

/// How many threads are meant: 0 is one per core.
pub fn count(threads: usize) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        more => more,
    }
}

/// Run `work` where the [`for_each`] within it find the threads awake: to wake one takes longer than many a job of the
/// graph. A thread that waits this long for a job sleeps after all.
pub fn within<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> Result<R, String> {
    check(threads)?;
    if threads == 1 {
        return Ok(work());
    }
    with_threads(threads, || {
        let (over, here) = (Arc::new(AtomicBool::new(false)), rayon::current_thread_index());
        let seen = over.clone();
        // Not waited for: a thread that is busy with something else until this is over has nothing to watch.
        rayon::spawn_broadcast(move |context| {
            if Some(context.index()) != here {
                watch(&seen);
            }
        });
        let _over = OnDrop(|| {
            over.store(true, Ordering::Release);
            // Often another call follows soon: all wait for it a little, this thread as well.
            let over = over.clone();
            rayon::spawn_broadcast(move |_| watch(&over));
        });
        work()
    })
}

/// How long a thread watches without a job to do, while a call goes on and after it.
const PATIENCE: Duration = Duration::from_millis(1);
const AFTERWARDS: Duration = Duration::from_micros(200);

/// Do the jobs of others, without sleep in between, until it is over.
fn watch(over: &Arc<AtomicBool>) {
    thread_local! {
        static WATCHED: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
    }
    // One that watches already, for a call before, goes on for this one: a job within a job would need more and more
    // of the stack.
    if WATCHED.replace(Some(over.clone())).is_some() {
        return;
    }
    let mut last = Instant::now();
    loop {
        for _ in 0..64 {
            // No pause of the processor in between: under a hypervisor many of them give the core away.
            if rayon::yield_now() == Some(Yield::Executed) {
                last = Instant::now();
            }
        }
        let ended = WATCHED.with_borrow(|over| over.as_ref().is_none_or(|over| over.load(Ordering::Acquire)));
        if last.elapsed() > if ended { AFTERWARDS } else { PATIENCE } {
            break;
        }
        // Where there are more threads than cores somebody else may have something to do.
        std::thread::yield_now();
    }
    WATCHED.set(None);
}

/// Do all `jobs`, in any order, on `threads` threads.
pub fn for_each<J: Send>(threads: usize, jobs: Vec<J>, work: impl Fn(J) + Send + Sync) -> Result<(), String> {
    check(threads)?;
    if threads == 1 || jobs.len() <= 1 {
        jobs.into_iter().for_each(work);
        return Ok(());
    }
    with_threads(threads, || {
        let others = rayon::current_num_threads().min(jobs.len()) - 1;
        let (busy, queue) = (AtomicUsize::new(others), Mutex::new(jobs.into_iter()));
        let run = || {
            let next = || lock(&queue).next();
            while let Some(job) = next() {
                work(job);
            }
        };
        rayon::scope(|scope| {
            for _ in 0..others {
                scope.spawn(|_| {
                    let _done = OnDrop(|| {
                        busy.fetch_sub(1, Ordering::Release);
                    });
                    run();
                });
            }
            run();
            // The others are on their last jobs; the scope would sleep until they are done.
            for _ in 0..SPINS {
                if busy.load(Ordering::Acquire) == 0 {
                    break;
                }
                rayon::yield_local();
            }
        });
    })
}

/// Looks for the end of the others' last jobs, some tens of microseconds in all.
const SPINS: usize = 2000;

fn check(threads: usize) -> Result<(), String> {
    if threads > MOST_THREADS {
        return Err(format!("threads = {threads} must be at most {MOST_THREADS} (0: one per core)"));
    }
    Ok(())
}

/// What is locked here is whole whenever a job may panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Does something whether its scope ends well or in a panic.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
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

    #[test]
    fn every_job_is_done_once_awake_or_not_and_within_another() {
        let done: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
        for threads in [0, 1, 2, 3, 8] {
            let work = || {
                for_each(threads, (0..100).collect(), |i: usize| {
                    done[i].fetch_add(1, Ordering::Relaxed);
                })
            };
            work().unwrap();
            within(threads, || (0..50).try_for_each(|_| work())).unwrap().unwrap();
            // A thread that has waited long sleeps, and wakes again.
            within(threads, || {
                std::thread::sleep(5 * PATIENCE);
                within(threads, work).unwrap().unwrap();
            })
            .unwrap();
        }
        assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 5 * 52));
    }

    #[test]
    fn a_panic_of_a_job_ends_the_call_and_not_the_threads() {
        let fails = |bad: usize| {
            std::panic::catch_unwind(|| within(2, || for_each(2, (0..8).collect(), |i: usize| assert!(i != bad))))
        };
        assert!((0..8).all(|bad| fails(bad).is_err()));
        assert!(fails(99).is_ok());
    }
}
