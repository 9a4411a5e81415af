//! Reading configurations: what `check` and a reload pay before anything is opened.

use criterion::{Criterion, criterion_group, criterion_main};
use migration_proxy::config::{Environment, Text, parse};

const TEMPLATE: &str = include_str!("../config/templates.yaml");
const FULL: &str = include_str!("../config/full.yaml");

/// `count` services, each written out.
fn written_out(count: usize) -> String {
    let service = |index: usize| {
        format!(
            "  - name: api-{index}\n    old_host: api-{index}.old.example\n    old_backend: 10.0.0.1:8078\n    \
             new_host: api-{index}.new.example\n    migration: {{percentage: 20, sticky: {{by: [client_ip]}}}}\n"
        )
    };
    format!("services:\n{}", (0..count).map(service).collect::<String>())
}

fn load(criterion: &mut Criterion) {
    let environment = Environment::new();
    let mut group = criterion.benchmark_group("config");
    group.sample_size(20);
    let files = [
        ("every key", FULL.to_owned()),
        ("500 services from a template", TEMPLATE.to_owned()),
        ("500 services written out", written_out(500)),
    ];
    for (name, content) in files {
        let text = Text::new("bench.yaml", content);
        group.bench_function(name, |bencher| {
            bencher.iter(|| parse(&text, &environment).expect("the file is valid").config.services.len());
        });
    }
    group.finish();
}

criterion_group!(benches, load);
criterion_main!(benches);
