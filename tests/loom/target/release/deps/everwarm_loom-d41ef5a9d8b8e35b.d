/work/main/tests/loom/target/release/deps/everwarm_loom-d41ef5a9d8b8e35b.d: src/lib.rs src/../../../src/engine/flights.rs src/../../../src/id.rs src/../../../src/sync.rs src/../../../src/index/version.rs

/work/main/tests/loom/target/release/deps/libeverwarm_loom-d41ef5a9d8b8e35b.rlib: src/lib.rs src/../../../src/engine/flights.rs src/../../../src/id.rs src/../../../src/sync.rs src/../../../src/index/version.rs

/work/main/tests/loom/target/release/deps/libeverwarm_loom-d41ef5a9d8b8e35b.rmeta: src/lib.rs src/../../../src/engine/flights.rs src/../../../src/id.rs src/../../../src/sync.rs src/../../../src/index/version.rs

src/lib.rs:
src/../../../src/engine/flights.rs:
src/../../../src/id.rs:
src/../../../src/sync.rs:
src/../../../src/index/version.rs:
