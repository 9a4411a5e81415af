//! What a request would get, step by step.
