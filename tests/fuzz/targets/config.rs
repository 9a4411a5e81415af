#![no_main]

#[path = "../inputs/mod.rs"]
#[allow(dead_code, reason = "each target calls one of the checks")]
mod inputs;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| inputs::config(bytes));
