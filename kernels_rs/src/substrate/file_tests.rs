//! A file gives back the graph, byte by byte, and every flipped byte of its contents is found.

use std::fs;
use std::path::PathBuf;

use crate::substrate::graph::Graph;
use crate::substrate::spread::Options;
use crate::substrate::tests::random;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("bouton-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_is_saved_is_opened_and_grows_on() {
    let folder = Folder::new("file");
    let path = folder.0.join("graph");
    let mut graph = random(300, 7, &[0.5, -1.0], 3);
    graph.spread(&[1, 2], &[1.0, 0.5], &Options::default()).unwrap();
    graph.save(&path, b"mine").unwrap();
    let (mut again, extra) = Graph::open(&path, true, 2).unwrap();
    assert_eq!(extra, b"mine");
    for threads in [1, 2] {
        let options = Options { threads, steps: 3, ..Options::default() };
        let wanted = graph.spread(&[7], &[1.0], &options).unwrap().active;
        assert_eq!(again.spread(&[7], &[1.0], &options).unwrap().active, wanted);
    }
    let more: Vec<u32> = (0..300).collect();
    for graph in [&mut graph, &mut again] {
        graph.connect(0, &more, &vec![5; 300], &vec![0.25; 300]).unwrap();
        graph.add_nodes(10).unwrap();
    }
    assert_eq!(graph.live, again.live);
    again.save(&path, b"").unwrap();
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "nothing is left beside it");
    assert_eq!(Graph::open(&path, true, 1).unwrap().0.count, 310);
}

#[test]
fn damage_is_found_wherever_it_is() {
    let folder = Folder::new("damage");
    let path = folder.0.join("graph");
    random(40, 3, &[0.5], 3).save(&path, b"extra").unwrap();
    let good = fs::read(&path).unwrap();
    let mut found = 0;
    for at in (0..good.len()).step_by(197) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).unwrap();
        // Bytes between the sections belong to none.
        match Graph::open(&path, true, 1) {
            Err(error) => {
                assert!(error.contains("is damaged") || error.contains("not a file of a graph"), "{error}");
                found += 1;
            }
            Ok((graph, _)) => assert_eq!(graph.live, random(40, 3, &[0.5], 3).live),
        }
    }
    assert!(found > 10, "{found}");
    for length in [0, 10, 33, 5000] {
        fs::write(&path, &good[..length]).unwrap();
        assert!(Graph::open(&path, true, 1).is_err() && Graph::open(&path, false, 1).is_err());
    }
}
