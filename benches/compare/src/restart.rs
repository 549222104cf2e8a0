//! The hit ratio over time around a kill -9. Each engine is filled and then gets popular entries at
//! a fixed rate. A get that misses is followed by a put, as in a cache in front of a database.

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

/// Exponent of the Zipf distribution.
const ALPHA: f64 = 0.9;
/// A prime; multiplying a rank by it scatters popular keys over all keys.
const SPREAD: u64 = 0x9E37_79B1;
/// Length of the windows in which hits are counted.
const WINDOW: Duration = Duration::from_millis(100);
/// Pause after the fill, for the engine's background work.
const SETTLE: Duration = Duration::from_secs(3);

/// Counts of one window. A child prints its first window after the fill.
#[derive(Serialize, Deserialize)]
struct Window {
    /// End of the window, in milliseconds since 1970.
    at: u64,
    gets: u64,
    hits: u64,
    wrong: u64,
}

/// Hits over time, relative to the kill.
#[derive(Serialize)]
pub struct Curve {
    /// Seconds from the kill to the end of a window, and the hits in it divided by the gets that
    /// the rate demands.
    pub points: Vec<(f64, f64)>,
    /// Seconds from the kill to the end of the first window with an answer.
    pub answers_after_s: Option<f64>,
    /// Hit ratio in the seconds before the kill.
    pub before: f64,
    /// Hit ratio in the first second with answers after the kill.
    pub first_second: f64,
    pub wrong: u64,
}

/// Rates and durations of a measurement.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Puts a second of the fill.
    pub fill_rate: u64,
    /// Gets a second.
    pub rate: u64,
    /// Time of gets before the kill.
    pub before: Duration,
    /// Time of gets after the kill.
    pub after: Duration,
}

/// Serves gets until the process is killed, and prints a line for each window. If `is_first`, fills
/// the store first, at `fill_rate` puts a second; some engines drop puts that arrive faster than
/// they can store them.
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
        // Also after a failed report, when the parent has closed the pipe.
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

/// Lets a child serve, kills it, and lets a second child serve the same store. `spawn` starts a
/// child; its argument is true for the first.
pub fn measure(plan: Plan, mut spawn: impl FnMut(bool) -> Result<Child>) -> Result<Curve> {
    let (mut first, mut lines) = start(spawn(true)?)?;
    let mut windows = Vec::new();
    let mut begin = || {
        windows.push(lines.next().context("the child ended during the fill")??);
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
    let lines = BufReader::new(child.stdout.take().context("the child has no standard output")?).lines();
    let parse = |line: std::io::Result<String>| Ok(serde_json::from_str(&line?)?);
    let parsed = <std::io::Lines<BufReader<ChildStdout>> as Iterator>::map(lines, parse);
    Ok((child, Box::new(parsed)))
}

fn collect(lines: &mut Lines, windows: &mut Vec<Window>, time: Duration) -> Result<()> {
    let end = now_ms() + time.as_millis() as u64;
    while windows.last().is_none_or(|window| window.at < end) {
        windows.push(lines.next().context("the child ended before it was killed")??);
    }
    Ok(())
}

/// Kills the process group of the child: the child and the processes that it started.
pub fn end(child: &mut Child) -> Result<()> {
    let group = rustix::process::Pid::from_child(child);
    match rustix::process::kill_process_group(group, rustix::process::Signal::KILL) {
        // ESRCH: no process of the group lives any more.
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    child.wait()?;
    Ok(())
}

/// Makes the child the leader of its own process group, so that [`end`] can kill the group.
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
    // A window begins at the end of the window before it. The first window of a process has the
    // nominal length.
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

/// Plots all curves into one SVG file.
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
            .y_desc("hits, % of intended gets")
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
