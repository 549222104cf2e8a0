//! Hits over the time around a kill -9. Each engine is filled, then asked at a fixed rate for popular entries; whatever misses is put, as a cache in front of a database would.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use bytes::BytesMut;
use plotters::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand_distr::{Distribution, Zipf};
use serde::{Deserialize, Serialize};

use crate::stores::{Engine, Size, Store};
use crate::work::{each_of, key, value};

const ALPHA: f64 = 0.9;
const SPREAD: u64 = 0x9E37_79B1;
/// Hits are counted for so long.
const WINDOW: Duration = Duration::from_millis(100);
/// After the fill, so that what it left to be done is done.
const SETTLE: Duration = Duration::from_secs(3);

/// What was counted in one window, or that the store was filled.
#[derive(Serialize, Deserialize)]
struct Window {
    /// Milliseconds since 1970 at its end.
    at: u64,
    gets: u64,
    hits: u64,
    wrong: u64,
}

/// Hits over the time, relative to the kill.
#[derive(Serialize)]
pub struct Curve {
    /// Seconds from the kill to the end of a window, and the share of what was to be asked in it that was a hit.
    pub points: Vec<(f64, f64)>,
    /// Seconds from the kill to the end of the first window with an answer.
    pub answers_after_s: Option<f64>,
    /// Hit ratio in the seconds before the kill, and in the first second with answers.
    pub before: f64,
    pub first_second: f64,
    pub wrong: u64,
}

/// How long, and how much is asked.
#[derive(Clone, Copy)]
pub struct Plan {
    pub fill_rate: u64,
    pub rate: u64,
    pub before: Duration,
    pub after: Duration,
}

/// Serves until it is killed. Fills first if it `is_first`, no faster than `fill_rate`: some engines drop what comes faster than they can store it.
pub fn serve(engine: Engine, dir: &Path, size: Size, threads: u64, (fill_rate, rate): (u64, u64), is_first: bool) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let store = engine.open(dir, size)?;
    if is_first {
        let start = Instant::now();
        each_of(size.entries, threads, |n, buf| {
            let early = (start + Duration::from_secs_f64(n as f64 / fill_rate as f64)).saturating_duration_since(Instant::now());
            if !early.is_zero() {
                std::thread::sleep(early);
            }
            store.put(key(n), value(buf, n, 0, size.value_len))
        })?;
        std::thread::sleep(SETTLE);
    }
    let (gets, hits, wrong) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (store, gets, hits, wrong, over) = (store.as_ref(), &gets, &hits, &wrong, &over);
        let callers: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || caller(store, size, (thread, threads, rate), [gets, hits, wrong], over)))
            .collect();
        let report = || {
            while callers.iter().all(|caller| !caller.is_finished()) {
                std::thread::sleep(WINDOW);
                let window =
                    Window { at: now_ms(), gets: gets.swap(0, Relaxed), hits: hits.swap(0, Relaxed), wrong: wrong.swap(0, Relaxed) };
                writeln!(std::io::stdout(), "{}", serde_json::to_string(&window)?)?;
            }
            Ok(())
        };
        let reported: Result<()> = report();
        // Also if nobody listens any more.
        over.store(true, Relaxed);
        callers.into_iter().try_for_each(|caller| caller.join().expect("a caller panicked"))?;
        reported
    })
}

fn caller(
    store: &dyn Store,
    size: Size,
    (thread, threads, rate): (u64, u64, u64),
    [gets, hits, wrong]: [&AtomicU64; 3],
    over: &AtomicBool,
) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(thread);
    let zipf = Zipf::new(size.entries as f64, ALPHA)?;
    let mut buf = BytesMut::new();
    let (start, between) = (Instant::now(), Duration::from_secs(1) * threads as u32 / rate as u32);
    for call in 0u32.. {
        if over.load(Relaxed) {
            break;
        }
        let early = (start + between * call).saturating_duration_since(Instant::now());
        if !early.is_zero() {
            std::thread::sleep(early);
        }
        let n = (zipf.sample(&mut rng) as u64 - 1) * SPREAD % size.entries;
        let found = store.get(key(n))?;
        gets.fetch_add(1, Relaxed);
        match found {
            Some(found) => {
                hits.fetch_add(1, Relaxed);
                wrong.fetch_add(u64::from(found != value(&mut buf, n, 0, size.value_len)), Relaxed);
            }
            None => store.put(key(n), value(&mut buf, n, 0, size.value_len))?,
        }
    }
    Ok(())
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// Serves, kills, and serves again. `spawn` starts a child: the first one or the second.
pub fn measure(plan: Plan, mut spawn: impl FnMut(bool) -> Result<Child>) -> Result<Curve> {
    let (mut first, mut lines) = start(spawn(true)?)?;
    let mut windows = Vec::new();
    let mut begin = || {
        windows.push(lines.next().context("it ended while it was filled")??);
        collect(&mut lines, &mut windows, plan.before)
    };
    let outcome = begin();
    end(&mut first)?;
    outcome?;
    let killed = now_ms();
    let (mut second, mut lines) = start(spawn(false)?)?;
    let outcome = collect(&mut lines, &mut windows, plan.after);
    end(&mut second)?;
    outcome?;
    Ok(curve(plan, &windows, killed))
}

type Lines = Box<dyn Iterator<Item = Result<Window>>>;

fn start(mut child: Child) -> Result<(Child, Lines)> {
    let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let parse = |line: std::io::Result<String>| Ok(serde_json::from_str(&line?)?);
    let parsed = <std::io::Lines<BufReader<ChildStdout>> as Iterator>::map(lines, parse);
    Ok((child, Box::new(parsed)))
}

fn collect(lines: &mut Lines, windows: &mut Vec<Window>, time: Duration) -> Result<()> {
    let end = now_ms() + time.as_millis() as u64;
    while windows.last().is_none_or(|window| window.at < end) {
        windows.push(lines.next().context("it ended by itself")??);
    }
    Ok(())
}

/// Kills the child and whatever it started.
pub fn end(child: &mut Child) -> Result<()> {
    let group = rustix::process::Pid::from_child(child);
    match rustix::process::kill_process_group(group, rustix::process::Signal::KILL) {
        // Nobody of it lives any more.
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    child.wait()?;
    Ok(())
}

/// A child that leads a group of processes of its own.
pub fn leads_a_group(command: &mut std::process::Command) -> &mut std::process::Command {
    command.process_group(0)
}

fn curve(plan: Plan, windows: &[Window], killed: u64) -> Curve {
    let since = |window: &Window| (window.at as f64 - killed as f64) / 1e3;
    let ratio = |of: &mut dyn Iterator<Item = &Window>| {
        let (gets, hits) = of.fold((0, 0), |(gets, hits), window| (gets + window.gets, hits + window.hits));
        hits as f64 / (gets as f64).max(1.0)
    };
    let answers = windows.iter().find(|window| window.at > killed && window.gets > 0).map(since);
    // A window is as long as it is since the last one, or as it should be if that was another process's.
    let begins = windows.iter().map(|window| Some(since(window)));
    let lens = windows.iter().zip(std::iter::once(None).chain(begins)).map(|(window, begin)| match begin {
        Some(begin) if (begin <= 0.0) == (since(window) <= 0.0) => since(window) - begin,
        _ => WINDOW.as_secs_f64(),
    });
    let mut points: Vec<(f64, f64)> =
        windows.iter().zip(lens).map(|(window, len)| (since(window), window.hits as f64 / (plan.rate as f64 * len))).collect();
    if let Some(at) = points.iter().position(|(at, _)| *at > 0.0) {
        let back = points[at].0 - WINDOW.as_secs_f64();
        points.splice(at..at, [(0.0, 0.0), (back.max(0.0), 0.0)]);
    }
    Curve {
        answers_after_s: answers,
        before: ratio(&mut windows.iter().filter(|window| window.at <= killed)),
        first_second: answers.map_or(0.0, |from| ratio(&mut windows.iter().filter(|window| (from..from + 1.0).contains(&since(window))))),
        wrong: windows.iter().map(|window| window.wrong).sum(),
        points,
    }
}

/// All curves in one picture.
pub fn draw(path: &PathBuf, curves: &[(String, &Curve)], plan: Plan) -> Result<()> {
    const COLOURS: [RGBColor; 8] = [RED, BLUE, CYAN, GREEN, MAGENTA, BLACK, RGBColor(230, 140, 0), RGBColor(120, 120, 120)];
    let drawn = || -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::new(path, (1000, 420)).into_drawing_area();
        area.fill(&WHITE)?;
        let range = -plan.before.as_secs_f64()..plan.after.as_secs_f64();
        let mut chart =
            ChartBuilder::on(&area).margin(10).x_label_area_size(40).y_label_area_size(50).build_cartesian_2d(range, 0.0..100.0)?;
        chart
            .configure_mesh()
            .x_desc("seconds since kill -9")
            .y_desc("hits, % of what was asked for")
            .bold_line_style(BLACK.mix(0.08))
            .light_line_style(WHITE)
            .draw()?;
        for ((name, curve), colour) in curves.iter().zip(COLOURS.into_iter().cycle()) {
            let points = curve.points.iter().map(|(at, share)| (*at, 100.0 * share));
            let series = chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
            series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        chart.configure_series_labels().position(SeriesLabelPosition::LowerRight).border_style(BLACK).background_style(WHITE).draw()?;
        area.present()?;
        Ok(())
    };
    drawn().map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}
