//! The checks of the fuzz targets (`tests/fuzz`), run over their corpus and over what a few thousand changes make of it. The
//! changes come from a fixed seed, so that a failure comes back.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};

#[path = "../fuzz/inputs/mod.rs"]
mod inputs;

use inputs::{ALL, Check};

/// Changed inputs for each target; those of a configuration take longer than the others.
const CHANGED: usize = 3_000;
const CHANGED_FILES: usize = 150;

/// The inputs of a target, always in the same order.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<_> = entries
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 5, "{target} has a corpus");
    inputs
}

#[track_caller]
fn holds(target: &str, check: Check, what: &str, input: &[u8]) {
    let result = panic::catch_unwind(AssertUnwindSafe(|| check(input)));
    assert!(result.is_ok(), "{target}: {what}: b\"{}\"", input.escape_ascii());
}

#[test]
fn every_input_of_the_corpus_holds() {
    for (target, check) in ALL {
        for (name, input) in corpus(target) {
            holds(target, check, &name, &input);
        }
    }
}

#[test]
fn changed_inputs_hold() {
    for (target, check) in ALL {
        let corpus = corpus(target);
        let mut dice = SmallRng::seed_from_u64(20_240_101);
        for number in 0..if target == "config" { CHANGED_FILES } else { CHANGED } {
            let (name, input) = &corpus[dice.random_range(0..corpus.len())];
            let other = &corpus[dice.random_range(0..corpus.len())].1;
            let changed = changed(input, other, &mut dice);
            holds(target, check, &format!("{name}, change {number}"), &changed);
        }
    }
}

/// A few random changes: bytes flipped, set, inserted, removed or doubled, and pieces of another input.
fn changed(input: &[u8], other: &[u8], dice: &mut SmallRng) -> Vec<u8> {
    const TELLING: &[u8] = b"\0\x01\x16\x7f\x80\xff\r\n\t :;,.=\"'[]{}-%/*0129aZ";
    let mut bytes = input.to_vec();
    for _ in 0..dice.random_range(1..=6) {
        let length = bytes.len();
        let at = dice.random_range(0..=length);
        let until = (at + dice.random_range(0..=16)).min(length);
        match dice.random_range(0..6) {
            0 if at < length => bytes[at] ^= 1 << dice.random_range(0..8),
            1 if at < length => bytes[at] = TELLING[dice.random_range(0..TELLING.len())],
            2 => bytes.insert(at, TELLING[dice.random_range(0..TELLING.len())]),
            3 => drop(bytes.drain(at..until)),
            4 => {
                let piece = bytes[at..until].to_vec();
                bytes.splice(at..at, piece);
            }
            _ if !other.is_empty() => {
                let start = dice.random_range(0..other.len());
                let end = (start + dice.random_range(1..=64)).min(other.len());
                bytes.splice(at..until, other[start..end].iter().copied());
            }
            _ => {}
        }
    }
    bytes
}
