//! The program from a user's point of view: its output, its exit codes and its refusals. The tests
//! start real processes and kill some of them.
#![cfg(feature = "cli")]

use std::io::BufRead;
use std::path::Path;
use std::process::{Command, Output};

use everwarm::{Cache, Error, Options};

fn everwarm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_everwarm")).args(args).output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn store(dir: &tempfile::TempDir) -> String {
    dir.path().join("store").to_string_lossy().into_owned()
}

/// Asserts that the program failed with exit code 2 and a message that contains `reason`.
fn refused(output: &Output, reason: &str) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains(reason), "{message:?} does not contain {reason:?}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_put_value_is_returned_until_it_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    let flash = ["--flash", "1MiB", "--memory", "1MiB"];
    assert!(everwarm(&[&["put", &store, "key", "value"], &flash[..]].concat()).status.success());
    let got = everwarm(&["get", &store, "key"]);
    assert_eq!((got.status.code(), text(&got.stdout).trim_end()), (Some(0), "value"));
    assert!(everwarm(&["delete", &store, "key"]).status.success());
    let got = everwarm(&["get", &store, "key"]);
    assert_eq!((got.status.code(), got.stdout.len()), (Some(1), 0));
    let stats = everwarm(&["stats", &store, "--json"]);
    assert!(text(&stats.stdout).contains("\"entries\":0"), "{}", text(&stats.stdout));
}

#[test]
fn inspect_and_compact_work_on_a_store_made_by_put() {
    let dir = tempfile::tempdir().unwrap();
    let (store, copy) = (store(&dir), dir.path().join("copy").to_string_lossy().into_owned());
    for key in ["a", "b", "c"] {
        assert!(everwarm(&["put", &store, key, "x", "--flash", "1MiB"]).status.success());
    }
    let found = everwarm(&["inspect", &store, "--json"]);
    assert_eq!(found.status.code(), Some(0), "{}", text(&found.stdout));
    assert!(text(&found.stdout).contains("\"clean\":true"));
    let compacted = everwarm(&["compact", &store, "-o", &copy]);
    assert!(compacted.status.success(), "{}", text(&compacted.stderr));
    assert_eq!(text(&everwarm(&["get", &copy, "b"]).stdout).trim_end(), "x");
    refused(&everwarm(&["compact", &store, "-o", &copy]), "not empty");
    let layout = text(&everwarm(&["inspect", "layout"]).stdout);
    assert!(layout.contains("EWMF") && layout.contains("EWWF"));
}

#[test]
fn a_damaged_file_is_reported_by_inspect_and_survived_by_get() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    assert!(everwarm(&["put", &store, "key", "value", "--flash", "1MiB"]).status.success());
    for n in 0..2 {
        let _one_exists = std::fs::write(Path::new(&store).join(format!("checkpoint.{n}")), vec![7; 8192]);
    }
    assert_eq!(everwarm(&["inspect", &store]).status.code(), Some(1));
    assert_eq!(text(&everwarm(&["get", &store, "key"]).stdout).trim_end(), "value");
    assert_eq!(everwarm(&["inspect", &store]).status.code(), Some(1), "get repairs nothing");
    assert!(everwarm(&["delete", &store, "other"]).status.success());
    assert_eq!(everwarm(&["inspect", &store]).status.code(), Some(0), "the close by delete wrote a valid checkpoint");
}

#[test]
fn verify_finds_damaged_records_that_inspect_does_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    let cache = Cache::open(Options::new(&store).flash(1 << 20).memory(1 << 20)).unwrap();
    for key in 0..200u32 {
        cache.put(key.to_le_bytes(), vec![7; 1_000]).unwrap();
    }
    cache.delete(3u32.to_le_bytes()).unwrap();
    drop(cache);
    // As after a kill: the WAL describes the records of the last segments.
    let found = everwarm::verify(&store).unwrap();
    let verified = found.verified.unwrap();
    assert!(verified.wal_frames > 0 && verified.records > 0 && found.problems.is_empty(), "{found:?}");
    assert_eq!(verified.wal_last, 201);
    Cache::open(Options::new(&store)).unwrap().close().unwrap();
    let whole = everwarm(&["inspect", &store, "--verify", "--json"]);
    assert_eq!(whole.status.code(), Some(0), "{}", text(&whole.stdout));
    assert!(text(&whole.stdout).contains("\"records\":200,"), "{}", text(&whole.stdout));
    assert!(text(&whole.stdout).contains("\"checkpoint_entries\":199,"), "{}", text(&whole.stdout));
    let segment = Path::new(&store).join("segment.0");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[9_000] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    assert_eq!(everwarm(&["inspect", &store]).status.code(), Some(0), "inspect does not read records");
    let damaged = everwarm(&["inspect", &store, "--verify"]);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(text(&damaged.stdout).contains("segment 0: 1 records cannot be read"), "{}", text(&damaged.stdout));
    std::fs::remove_file(segment).unwrap();
    let refused = Cache::open(Options::new(&store).recovery(everwarm::RecoveryMode::Refuse));
    assert!(matches!(&refused, Err(Error::Corrupt { what, .. }) if what.contains("segment 0: its file is missing")), "{refused:?}");
}

#[test]
fn wrong_input_is_refused_with_its_reason_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    refused(&everwarm(&["get", &store, "key"]), "holds no everwarm store");
    assert!(!Path::new(&store).exists(), "get creates no store");
    assert!(everwarm(&["put", &store, "key", "value", "--flash", "1MiB"]).status.success());
    for verb in [&["put", &store, "", "v"][..], &["get", &store, ""], &["delete", &store, ""]] {
        refused(&everwarm(verb), "a key has 1 to 65535 bytes");
    }
    assert!(everwarm::inspect(&store).unwrap().clean);
    refused(&everwarm(&["put", &store, "k", "v", "--flash", "1KiB"]), "flash");
    refused(&everwarm(&["put", &store, "k", "v", "--flash", "much"]), "much");
    refused(&everwarm(&["drill", "--trace", "/nonexistent.csv.gz"]), "nonexistent");
    refused(&everwarm(&["no-such-verb"]), "no-such-verb");
    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.txt"), "years of work").unwrap();
    refused(&everwarm(&["put", &foreign.to_string_lossy(), "k", "v"]), "thesis.txt");
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1);
    for name in ["wal.txt", "checkpoint.pt", "segment.007", "manifest.0"] {
        let foreign = dir.path().join(format!("with-{name}"));
        std::fs::create_dir(&foreign).unwrap();
        std::fs::write(foreign.join(name), "years of work").unwrap();
        refused(&everwarm(&["put", &foreign.to_string_lossy(), "k", "v"]), name);
        assert_eq!(std::fs::read(foreign.join(name)).unwrap(), b"years of work");
        assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1, "no file is created beside {name}");
        std::fs::write(Path::new(&store).join(format!("{name}.notes")), "kept").unwrap();
    }
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    refused(&everwarm(&["put", &file.to_string_lossy(), "k", "v"]), "file");
    assert_eq!(text(&everwarm(&["get", &store, "key"]).stdout).trim_end(), "value");
    assert_eq!(std::fs::read(Path::new(&store).join("wal.txt.notes")).unwrap(), b"kept", "opening a store removes no foreign files");
    for copy in ["manifest.0", "manifest.1"] {
        std::fs::rename(Path::new(&store).join(copy), dir.path().join(copy)).unwrap();
    }
    for verb in [&["get", &store, "key"][..], &["inspect", &store]] {
        refused(&everwarm(verb), "manifest.0 is damaged");
    }
    refused(&everwarm(&["put", &store, "key", "other"]), "manifest.0 is damaged");
    for copy in ["manifest.0", "manifest.1"] {
        std::fs::rename(dir.path().join(copy), Path::new(&store).join(copy)).unwrap();
    }
    assert_eq!(text(&everwarm(&["get", &store, "key"]).stdout).trim_end(), "value");
}

#[test]
fn a_store_keeps_its_size_entries_and_namespaces_unless_told_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    let cache = Cache::open(Options::new(&store).flash(64 << 20)).unwrap();
    for key in 0..30_000u32 {
        cache.put(key.to_le_bytes(), "v").unwrap();
    }
    cache.put("key", "value").unwrap();
    cache.close().unwrap();
    refused(&everwarm(&["delete", &store, "other", "--flash", "1MiB"]), "--resize");
    refused(&everwarm(&["get", &store, "key", "--flash", "1MiB"]), "--flash");
    refused(&everwarm(&["get", &store, "key", "--memory", "16000000G"]), "this process may use");
    refused(&everwarm(&["get", &store, "key", "-n", "typo"]), "no namespace `typo`");
    assert!(everwarm::inspect(&store).unwrap().clean, "a refusal leaves the store unchanged");
    let stats = text(&everwarm(&["stats", &store, "--json"]).stdout);
    assert!(stats.contains("\"entries\":30001"), "{stats}");
    let copy = dir.path().join("copy");
    refused(&everwarm(&["compact", &store, "-o", &copy.to_string_lossy(), "--flash", "512KiB"]), "do not fit");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no partial copy is left");
    assert!(everwarm(&["delete", &store, "other", "--flash", "128MiB", "--resize"]).status.success());
    assert!(everwarm(&["compact", &store, "-o", &copy.to_string_lossy()]).status.success());
    let copied = everwarm::inspect(&copy).unwrap();
    assert_eq!((copied.flash, text(&everwarm(&["get", &copy.to_string_lossy(), "key"]).stdout)), (128 << 20, "value".to_owned()));
}

#[test]
fn foreign_files_with_the_names_of_store_files_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    let cache = Cache::open(Options::new(&store).flash(1 << 20).memory(1 << 20)).unwrap();
    for key in 0..100u32 {
        cache.put(key.to_le_bytes(), vec![1; 5_000]).unwrap();
    }
    drop(cache);
    std::fs::write(Path::new(&store).join("wal.4294967295"), "not ours").unwrap();
    for name in ["segment.5000", "wal.0.d", "wal.7"] {
        std::fs::create_dir(Path::new(&store).join(name)).unwrap();
    }
    // A directory in the place of a file that the opening reads may hide that file.
    let (path, aside) = (Path::new(&store).join("manifest.0"), Path::new(&store).join("aside"));
    std::fs::rename(&path, &aside).unwrap();
    std::fs::create_dir(&path).unwrap();
    refused(&everwarm(&["put", &store, "key", "value"]), "manifest.0");
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&aside, &path).unwrap();
    for round in 0..3u8 {
        let cache = Cache::open(Options::new(&store).memory(1 << 20)).unwrap();
        assert_eq!(cache.recovery().damaged, Vec::<String>::new());
        for key in 0..400u32 {
            cache.put(key.to_le_bytes(), vec![round; 2_000]).unwrap();
        }
        cache.persist(everwarm::Ack::Host).unwrap();
        let newest = cache.get(399u32.to_le_bytes()).unwrap();
        assert_eq!(newest.as_deref(), Some(&[round; 2_000][..]));
        // Without a close, as after a kill.
        drop(cache);
    }
}

#[test]
fn compact_takes_defaults_from_the_store_and_refuses_unusable_outputs() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    assert!(everwarm(&["put", &store, "key", "value", "--flash", "48MiB"]).status.success());
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (config, copy) = (path("options.toml"), path("copy"));
    std::fs::write(&config, "compression = 'zstd'\ndir = 'elsewhere'").unwrap();
    let compacted = everwarm(&["compact", &store, "-o", &copy, "--config", &config]);
    assert!(compacted.status.success(), "{}", text(&compacted.stderr));
    assert_eq!(everwarm::inspect(&copy).unwrap().flash, 48 << 20);
    std::fs::create_dir(path("empty")).unwrap();
    assert!(everwarm(&["compact", &store, "-o", &path("empty")]).status.success());
    assert_eq!(text(&everwarm(&["get", &path("empty"), "key"]).stdout), "value");
    std::fs::create_dir(path("target")).unwrap();
    std::os::unix::fs::symlink(path("target"), path("link")).unwrap();
    refused(&everwarm(&["compact", &store, "-o", &path("link")]), "link");
    refused(&everwarm(&["compact", &store, "-o", &path("small"), "--memory", "1KiB"]), "memory");
    assert!(everwarm::inspect(&store).unwrap().clean, "a refusal leaves the store unchanged");
    // A resize needs a permission: `--resize`, or `resize` in the file.
    std::fs::write(&config, "flash = '64MiB'").unwrap();
    refused(&everwarm(&["delete", &store, "other", "--config", &config]), "--resize");
    std::fs::write(&config, "flash = '64MiB'\nresize = true").unwrap();
    assert!(everwarm(&["get", &store, "key", "--config", &config]).status.success());
    assert_eq!(everwarm::inspect(&store).unwrap().flash, 48 << 20, "get changes no size");
    assert!(everwarm(&["delete", &store, "other", "--config", &config]).status.success());
    assert_eq!(everwarm::inspect(&store).unwrap().flash, 64 << 20);
    let hinted = text(&everwarm(&["get", &store, "key", "--memory", "1KiB"]).stderr);
    assert!(hinted.contains("memory") && !hinted.contains("--resize"), "{hinted}");
}

#[test]
fn an_interrupted_drill_leaves_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut drill = Command::new(env!("CARGO_BIN_EXE_everwarm"))
        .args(["drill", "--keys", "1000", "--requests", "10000000"])
        .env("TMPDIR", dir.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(drill.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{line}");
    rustix::process::kill_process(rustix::process::Pid::from_child(&drill), rustix::process::Signal::INT).unwrap();
    assert_eq!(drill.wait().unwrap().code(), Some(130));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    assert!(everwarm(&["put", &store, "key", "value", "--flash", "1MiB"]).status.success());
    for args in [["stats", store.as_str()], ["inspect", "layout"]] {
        let full = std::fs::File::create("/dev/full").unwrap();
        let ended = Command::new(env!("CARGO_BIN_EXE_everwarm")).args(args).stdout(full).output().unwrap();
        assert_eq!(ended.status.code(), Some(2), "{}", text(&ended.stderr));
        assert!(text(&ended.stderr).contains("No space left"), "{}", text(&ended.stderr));
    }
}

#[test]
fn too_few_descriptors_are_refused_and_a_soft_limit_is_raised() {
    let dir = tempfile::tempdir().unwrap();
    let limited = format!("ulimit -n 300; exec {} put {} key value", env!("CARGO_BIN_EXE_everwarm"), store(&dir));
    refused(&Command::new("sh").args(["-c", &limited]).output().unwrap(), "file descriptors");
    let raised = format!("ulimit -Sn 300; exec {} put {} key value", env!("CARGO_BIN_EXE_everwarm"), store(&dir));
    assert!(Command::new("sh").args(["-c", &raised]).output().unwrap().status.success());
}

#[test]
fn a_second_opener_is_refused_with_the_pid_of_the_owner() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir);
    let cache = Cache::open(Options::new(&store).flash(1 << 20).memory(1 << 20)).unwrap();
    cache.put("key", "value").unwrap();
    refused(&everwarm(&["delete", &store, "key"]), &format!("open in process {}", std::process::id()));
    let refused_at_once = Cache::open(Options::new(&store).lock_timeout(std::time::Duration::ZERO));
    assert!(matches!(refused_at_once, Err(Error::Locked { holder, .. }) if holder == format!("process {}", std::process::id())));
    assert!(everwarm(&["inspect", &store]).status.code().is_some_and(|code| code < 2), "inspect reads beside the owner");
    cache.close().unwrap();
    assert!(text(&everwarm(&["get", &store, "key"]).stdout).contains("value"));
}

/// Names, contents and times of the files of a store.
fn image(store: &str) -> Vec<(std::path::PathBuf, Vec<u8>, std::time::SystemTime)> {
    let paths = std::fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        paths.map(|path| (path.clone(), std::fs::read(&path).unwrap(), path.metadata().unwrap().modified().unwrap())).collect();
    files.sort();
    files
}

#[test]
fn commands_that_only_read_work_beside_the_owner_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, copy) = (store(&dir), dir.path().join("copy").to_string_lossy().into_owned());
    let cache = Cache::open(Options::new(&store).flash(1 << 20).memory(1 << 20)).unwrap();
    cache.put("key", "value").unwrap();
    cache.namespace("tenant").unwrap().put("key", "of a tenant").unwrap();
    cache.persist(everwarm::Ack::Host).unwrap();
    let read = || {
        assert_eq!(text(&everwarm(&["get", &store, "key"]).stdout), "value");
        assert_eq!(text(&everwarm(&["get", &store, "key", "-n", "tenant"]).stdout), "of a tenant");
        assert_eq!(everwarm(&["get", &store, "absent"]).status.code(), Some(1));
        let stats = text(&everwarm(&["stats", &store, "--json"]).stdout);
        assert!(stats.contains("\"entries\":2,") && stats.contains("\"appended\":3"), "{stats}");
        assert!(everwarm(&["compact", &store, "-o", &copy]).status.success());
        assert_eq!(text(&everwarm(&["get", &copy, "key", "-n", "tenant"]).stdout), "of a tenant");
        std::fs::remove_dir_all(&copy).unwrap();
    };
    read();
    // As a kill leaves it.
    drop(cache);
    let before = image(&store);
    read();
    assert!(before == image(&store), "nothing is written");
    Cache::open(Options::new(&store)).unwrap().close().unwrap();
    let before = image(&store);
    read();
    assert!(before == image(&store), "nothing is written");
    refused(&everwarm(&["get", &copy, "key"]), "holds no everwarm store");
    assert!(!Path::new(&copy).exists());
}

/// Runs the program as the user `nobody`. `None` unless this process may do that.
fn everwarm_as_nobody(program: &Path, args: &[&str]) -> Option<Output> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return None;
    }
    let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
    match Command::new("setpriv").args(user).arg(program).args(args).current_dir("/").output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("skipped: setpriv cannot be run: {error}");
            None
        }
    }
}

#[test]
fn another_user_reads_the_store_and_files_that_root_makes_are_the_owners() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let (store, program) = (store(&dir), dir.path().join("everwarm"));
    std::fs::copy(env!("CARGO_BIN_EXE_everwarm"), &program).unwrap();
    let may_read = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    may_read(dir.path(), 0o755);
    may_read(&program, 0o755);
    assert!(everwarm(&["put", &store, "key", "value", "--flash", "1MiB"]).status.success());
    let all = || std::fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path());
    may_read(Path::new(&store), 0o755);
    all().for_each(|path| may_read(&path, 0o644));
    let before = image(&store);
    let Some(got) = everwarm_as_nobody(&program, &["get", &store, "key"]) else { return };
    assert_eq!(text(&got.stdout), "value", "{}", text(&got.stderr));
    let stats = everwarm_as_nobody(&program, &["stats", &store, "--json"]).unwrap();
    assert!(text(&stats.stdout).contains("\"entries\":1,"), "{}", text(&stats.stderr));
    refused(&everwarm_as_nobody(&program, &["put", &store, "key", "other"]).unwrap(), "cannot");
    assert!(before == image(&store));
    // The owner of the directory still opens a store to which root has put.
    std::fs::remove_dir_all(&store).unwrap();
    std::fs::create_dir(&store).unwrap();
    chown(&store, Some(65534), Some(65534)).unwrap();
    assert!(everwarm(&["put", &store, "key", "of root", "--flash", "1MiB"]).status.success());
    assert!(all().count() > 5 && all().all(|path| (path.metadata().unwrap().uid(), path.metadata().unwrap().gid()) == (65534, 65534)));
    let put = everwarm_as_nobody(&program, &["put", &store, "key", "of the owner"]).unwrap();
    assert!(put.status.success(), "{}", text(&put.stderr));
    assert_eq!(text(&everwarm(&["get", &store, "key"]).stdout), "of the owner");
}

#[test]
fn keys_and_values_beyond_the_limits_are_refused_with_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(Options::new(store(&dir)).flash(1 << 20).memory(1 << 20)).unwrap();
    assert!(matches!(cache.put("", "v"), Err(Error::EmptyKey)));
    assert!(matches!(cache.put(vec![0; 65_536], "v"), Err(Error::KeyTooLarge { max: 65_535, .. })));
    let Err(Error::KeyTooLarge { max, .. }) = cache.put(vec![0; 65_535], "v") else { panic!("a key of 65535 B does not fit a segment") };
    cache.put(vec![0; max], "").unwrap();
    let Err(Error::ValueTooLarge { max, .. }) = cache.put("k", vec![0; 1 << 20]) else { panic!("a value of 1 MiB does not fit a segment") };
    cache.put("k", vec![1; max]).unwrap();
    assert_eq!(cache.get("k").unwrap().unwrap().len(), max);
    assert!(matches!(cache.put("k", vec![0; max + 1]), Err(Error::ValueTooLarge { .. })));
    assert_eq!(cache.get("k").unwrap().unwrap().len(), max, "the refused put changed nothing");
}

#[test]
fn a_drill_with_kills_keeps_every_promise() {
    for (seed, flash) in [("21", "2x"), ("22", "0.5x")] {
        let args = [
            "drill",
            "--quiet",
            "--json",
            "--seed",
            seed,
            "--requests",
            "150000",
            "--keys",
            "20000",
            "--kills",
            "6",
            "--rate",
            "0",
            "--flash",
            flash,
        ];
        let drill = everwarm(&args);
        let (out, err) = (text(&drill.stdout), text(&drill.stderr));
        assert!(drill.status.success(), "{out}\n{err}");
        let last = out.lines().last().unwrap_or_default();
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(last).unwrap();
        let documented = include_str!("../docs/DRILL.md");
        for field in object.keys() {
            assert!(documented.contains(&format!("`{field}`")), "docs/DRILL.md does not document {field}");
        }
        for promise in ["\"stale\":0", "\"resurrected\":0", "\"wrong\":0", "\"lost_acked\":0"] {
            assert!(last.contains(promise), "{last}");
        }
    }
}

#[test]
fn each_benchmark_runs_its_workload_and_checks_its_answers() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.csv.gz");
    let rows: String = (0..900).map(|n| format!("{n},get,{},,200,\n", n % 300)).collect();
    let mut file = flate2::write::GzEncoder::new(std::fs::File::create(&trace).unwrap(), flate2::Compression::fast());
    std::io::Write::write_all(&mut file, format!("ts_ms_or_seq,op,key,key_size,value_size,ttl_s\n{rows}").as_bytes()).unwrap();
    file.finish().unwrap();
    let (trace, page) = (trace.to_string_lossy(), dir.path().join("page.html"));
    let page_name = page.to_string_lossy();
    let documented = include_str!("../docs/PERFORMANCE.md");
    let mut benches: Vec<(Vec<&str>, Vec<&str>)> = vec![
        (vec!["fill"], vec!["fill"]),
        (vec!["fill", "--tasks", "16", "--ack", "host"], vec!["fill"]),
        (vec!["read", "--rate", "2000"], vec!["fill", "read"]),
        (vec!["read", "--tasks", "4", "--depth", "8"], vec!["fill", "read"]),
        (vec!["idle"], vec!["fill", "idle"]),
        (vec!["overwrite", "--report", &page_name], vec!["fill", "overwrite"]),
        (vec!["delete"], vec!["fill", "delete", "look"]),
        (vec!["multiget", "--batch", "7"], vec!["fill", "multiget"]),
        (vec!["restart"], vec!["read"]),
        (vec!["restart", "--rebuild"], vec!["read"]),
        (vec!["trace", "--trace", &trace], vec!["trace"]),
    ];
    let mixes = [("A", "mixed A"), ("B", "mixed B"), ("C", "mixed C"), ("D", "mixed D"), ("E", "mixed E"), ("F", "mixed F")];
    benches.extend(mixes.map(|(mix, name)| (vec!["mixed", "--mix", mix], vec!["fill", name])));
    for (args, phases) in benches {
        let common = ["bench", "--json", "--entries", "3000", "--seconds", "1", "--warm-up", "0", "--callers", "3", "--memory", "8MiB"];
        let bench = everwarm(&[&common[..], &args[..]].concat());
        let (out, err) = (text(&bench.stdout), text(&bench.stderr));
        assert!(bench.status.success(), "{args:?}: {out}\n{err}");
        let report: serde_json::Value = serde_json::from_str(&out).unwrap();
        let fields = report.as_object().unwrap().keys().chain(report["phases"][0].as_object().unwrap().keys());
        fields.for_each(|field| assert!(documented.contains(&format!("`{field}`")), "docs/PERFORMANCE.md does not document {field}"));
        let names: Vec<&str> = report["phases"].as_array().unwrap().iter().map(|phase| phase["name"].as_str().unwrap()).collect();
        assert_eq!(names, phases);
        for phase in report["phases"].as_array().unwrap() {
            assert!(phase["wrong"] == 0 && (phase["calls"].as_u64().unwrap() > 0) != (phase["name"] == "idle"), "{args:?}: {phase}");
        }
        let last = report["phases"].as_array().unwrap().last().unwrap();
        let hits: u64 = ["hits_memory", "hits_buffer", "hits_flash"].iter().map(|tier| last[tier].as_u64().unwrap()).sum();
        match args[0] {
            "delete" => assert!(hits == 0 && last["misses"] == 3_000, "{last}"),
            "trace" => assert!(hits == 600 && last["misses"] == 300, "{last}"),
            "restart" => assert!(report["restart"]["entries"] == 3_000 && last["misses"] == 0, "{report}"),
            "read" if args.contains(&"--rate") => {
                let beside = last["beside"].as_object().unwrap().values().map(|latency| latency["calls"].as_u64().unwrap()).sum::<u64>();
                assert!(beside >= last["calls"].as_u64().unwrap(), "{last}");
                assert!(last["gauges"].as_array().unwrap().iter().all(|gauge| gauge["descriptors"].as_u64() > Some(3)), "{last}");
            }
            "fill" => {
                assert_eq!(last["writes"]["calls"], 3_000);
                assert_eq!(last["bytes_put"], report["footprint"]);
                // Three blocking threads need at least 1,000 syncs for 3,000 puts. With tasks more
                // puts share a sync.
                assert!(!args.contains(&"--tasks") || last["syncs"].as_u64().is_some_and(|syncs| (1..1_000).contains(&syncs)), "{last}");
            }
            "overwrite" => {
                let html = std::fs::read_to_string(&page).unwrap();
                assert!(html.matches("<svg").count() == 3 && html.contains("accounted for"), "{html}");
            }
            "multiget" => assert_eq!(hits, 7 * last["calls"].as_u64().unwrap()),
            _ => {}
        }
    }
}

#[test]
fn a_benchmark_refuses_invalid_arguments() {
    refused(&everwarm(&["bench", "fill", "--value-size", "1"]), "16B to 32MiB");
    refused(&everwarm(&["bench", "mixed", "--tasks", "2"]), "--tasks");
    refused(&everwarm(&["bench", "read", "--tasks", "2", "--rate", "5"]), "--rate");
    refused(&everwarm(&["bench", "trace"]), "--trace");
    refused(&everwarm(&["bench", "trace", "--trace", "/nowhere"]), "/nowhere");
    refused(&everwarm(&["bench", "fill", "--alpha", "nan"]), "--alpha");
    refused(&everwarm(&["bench", "nothing"]), "nothing");
    refused(&everwarm(&["bench", "fill", "--report", "/nowhere/page.html"]), "/nowhere/page.html");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "mine").unwrap();
    refused(&everwarm(&["bench", "fill", "--keep", &dir.path().to_string_lossy()]), "not empty");
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"mine");
}
