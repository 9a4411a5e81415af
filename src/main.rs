//! temp
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
fn main() {
    let Some(path) = std::env::args().nth(3) else { return };
    let app = migration_proxy::app::App::start(migration_proxy::app::Options { config: path.into(), environment: std::env::vars().collect() });
    match app { Ok(app) => { println!("{:?}", app.addresses); app.run_until_signal(); } Err(e) => { eprintln!("{e}"); std::process::exit(3) } }
}
