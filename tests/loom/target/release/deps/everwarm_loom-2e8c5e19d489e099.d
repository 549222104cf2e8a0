/work/main/tests/loom/target/release/deps/everwarm_loom-2e8c5e19d489e099.d: src/lib.rs src/../../../src/engine/flights.rs src/../../../src/id.rs src/../../../src/sync.rs src/../../../src/index/version.rs

/work/main/tests/loom/target/release/deps/everwarm_loom-2e8c5e19d489e099: src/lib.rs src/../../../src/engine/flights.rs src/../../../src/id.rs src/../../../src/sync.rs src/../../../src/index/version.rs

src/lib.rs:
src/../../../src/engine/flights.rs:
src/../../../src/id.rs:
src/../../../src/sync.rs:
src/../../../src/index/version.rs:
