//! migration-proxy.

fn main() {}
