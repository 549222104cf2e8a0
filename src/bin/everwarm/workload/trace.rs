//! Recorded workloads: gzip-compressed CSV with the header [`HEADER`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use flate2::read::MultiGzDecoder;

use super::payload::KEY_LEN_MIN;
use super::{Op, Request, Workload};

const HEADER: &str = "ts_ms_or_seq,op,key,key_size,value_size,ttl_s";
/// Bytes of a key in rows that leave the size empty.
const KEY_LEN: u16 = 16;
/// Bytes of a value in rows that leave the size empty.
const VALUE_LEN: usize = 1024;
/// Longest line in bytes. Keeps a file of another kind from being read into memory as one line.
const LINE_LEN_MAX: u64 = 64 << 10;

/// Reads the requests of a trace file: all of them, or `wanted`. A file with fewer is repeated from
/// its beginning.
pub(crate) fn read(path: &Path, wanted: Option<usize>) -> anyhow::Result<Workload> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let lines = BufReader::new(MultiGzDecoder::new(file));
    let mut workload = parse(lines, wanted.unwrap_or(usize::MAX)).with_context(|| format!("cannot read {}", path.display()))?;
    let wanted = wanted.unwrap_or(workload.requests.len());
    workload.requests = workload.requests.iter().copied().cycle().take(wanted).collect();
    Ok(workload)
}

/// Parses at most `limit` requests of an uncompressed trace.
pub(crate) fn parse(mut lines: impl BufRead, limit: usize) -> anyhow::Result<Workload> {
    let mut line = String::new();
    lines.by_ref().take(LINE_LEN_MAX).read_line(&mut line)?;
    ensure!(line.trim_end() == HEADER, "the first line is not `{HEADER}`");
    let mut workload = Workload::default();
    let mut ids = HashMap::new();
    while workload.requests.len() < limit {
        line.clear();
        if lines.by_ref().take(LINE_LEN_MAX).read_line(&mut line)? == 0 {
            break;
        }
        let number = workload.requests.len() + 2;
        ensure!((line.len() as u64) < LINE_LEN_MAX, "line {number} has more than {LINE_LEN_MAX} B");
        let row = Row::parse(line.trim_end()).with_context(|| format!("line {number}"))?;
        let key = match ids.get(row.key) {
            Some(key) => *key,
            None => {
                let key = workload.key_lens.len() as u32;
                ids.insert(row.key.to_owned(), key);
                workload.key_lens.push(row.key_len);
                key
            }
        };
        workload.requests.push(Request { op: row.op, key, value_len: row.value_len, ttl_s: row.ttl_s });
    }
    ensure!(!workload.requests.is_empty(), "the trace has no requests");
    Ok(workload)
}

struct Row<'a> {
    op: Op,
    key: &'a str,
    key_len: u16,
    value_len: usize,
    ttl_s: u64,
}

impl<'a> Row<'a> {
    fn parse(line: &'a str) -> anyhow::Result<Self> {
        let fields: Vec<&str> = line.split(',').collect();
        let [_, op, key, key_len, value_len, ttl_s] = fields[..] else {
            bail!("expected 6 fields, found {}", fields.len());
        };
        let op = match op {
            "" | "get" => Op::Get,
            "set" => Op::Put,
            other => bail!("`{other}` is not an operation; use get or set"),
        };
        let key_len = number(key_len)?.map_or(KEY_LEN, |len| len.clamp(KEY_LEN_MIN as i64, u16::MAX.into()) as u16);
        let value_len = number(value_len)?.map_or(VALUE_LEN, |len| len.max(0) as usize);
        // Sources write -1 for an entry without expiry.
        let ttl_s = number(ttl_s)?.map_or(0, |ttl| ttl.max(0) as u64);
        Ok(Self { op, key, key_len, value_len, ttl_s })
    }
}

fn number(field: &str) -> anyhow::Result<Option<i64>> {
    if field.is_empty() {
        return Ok(None);
    }
    field.parse().map(Some).with_context(|| format!("`{field}` is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(rows: &str) -> anyhow::Result<Workload> {
        parse(format!("{HEADER}\n{rows}").as_bytes(), 100)
    }

    #[test]
    fn rows_become_requests_over_dense_keys() {
        let workload = parsed("0,,900,,,\n5,get,1,40,17,\n9,set,900,3,,7\n9,set,x,,2,-1\n").unwrap();
        let request = |op, key, value_len, ttl_s| Request { op, key, value_len, ttl_s };
        let expected =
            [request(Op::Get, 0, VALUE_LEN, 0), request(Op::Get, 1, 17, 0), request(Op::Put, 0, VALUE_LEN, 7), request(Op::Put, 2, 2, 0)];
        assert_eq!(workload.requests, expected);
        assert_eq!(workload.key_lens, [KEY_LEN, 40, KEY_LEN]);
    }

    #[test]
    fn reading_stops_at_the_limit() {
        let text = format!("{HEADER}\n0,,1,,,\n0,,2,,,\n0,,3,,,\n");
        assert_eq!(parse(text.as_bytes(), 2).unwrap().requests.len(), 2);
    }

    #[test]
    fn the_fuzz_corpus_parses_without_a_panic() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/trace");
        let mut requests = 0;
        for entry in std::fs::read_dir(corpus).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            requests += parse(&bytes[..], 1000).map_or(0, |workload| workload.requests.len());
        }
        assert!(requests > 0);
    }

    #[test]
    fn a_line_without_an_end_is_refused() {
        let error = parsed(&format!("0,,1,,,\n0,,{},,,\n", "9".repeat(1 << 20))).unwrap_err();
        assert_eq!(error.to_string(), "line 3 has more than 65536 B");
    }

    #[test]
    fn malformed_rows_are_refused_with_their_line_number() {
        assert!(parse("key,op\n".as_bytes(), 100).is_err());
        assert!(parsed("").is_err());
        for bad in ["0,,1,,", "0,drop,1,,,", "0,get,1,x,,"] {
            let error = parsed(&format!("0,,1,,,\n{bad}\n")).unwrap_err();
            assert_eq!(error.to_string(), "line 3", "{bad}");
        }
    }
}
