#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| everwarm::fuzzing::heat(data));
