//! Replays the committed corpus and mutations of it.

use std::path::Path;

use fuzz::TARGETS;

/// Mutations of each file. A fuzzer does millions; these are here to notice that a target has gone bad.
const MUTATIONS: usize = 200;

/// xorshift64: any fixed sequence does.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// Changes a few bytes, cuts, repeats.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(4) {
                0 if !bytes.is_empty() => bytes[at] = self.below(256) as u8,
                1 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                2 => bytes.truncate(at),
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes.truncate(4096);
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("the corpus is there").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("a readable file")).collect()
}

#[test]
fn the_corpus_and_what_is_near_it_pass() {
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has no corpus");
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for bytes in &corpus {
            target(bytes);
            for _ in 0..MUTATIONS {
                let mut mutated = bytes.clone();
                random.mutate(&mut mutated);
                target(&mutated);
            }
        }
    }
}
