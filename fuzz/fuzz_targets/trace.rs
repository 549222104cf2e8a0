#![no_main]
#![allow(dead_code, reason = "only a part of the program is used here")]

/// As the program has it.
mod payload {
    pub(crate) const KEY_LEN_MIN: usize = 8;
    pub(crate) const VALUE_LEN_MIN: usize = 16;
}
#[path = "../../src/bin/everwarm/drill/trace.rs"]
mod trace;
#[path = "../../src/bin/everwarm/drill/workload.rs"]
mod workload;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(workload) = trace::parse(data, 1000) {
        for request in workload.requests {
            let coded = workload::Request::from_code(request.code());
            assert_eq!((coded.op, coded.key), (request.op, request.key));
            assert!(coded.value_len <= workload::VALUE_LEN_MAX);
        }
    }
});
