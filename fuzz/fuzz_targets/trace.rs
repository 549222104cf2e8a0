#![no_main]
#![allow(dead_code, reason = "the target uses only a part of the module")]

/// The program's own module.
#[path = "../../src/bin/everwarm/workload/mod.rs"]
mod workload;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(workload) = workload::trace::parse(data, 1000) {
        for request in workload.requests {
            let coded = workload::Request::from_code(request.code());
            assert_eq!((coded.op, coded.key), (request.op, request.key));
            assert!(coded.value_len <= workload::VALUE_LEN_MAX);
        }
    }
});
