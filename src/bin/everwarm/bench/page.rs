//! The report as an HTML page with plots of throughput over time, latency, and memory over time.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;

use super::phase::Gauge;
use super::report::{Report, Row};
use crate::html;

const SIZE: (u32, u32) = (1160, 360);
const COLOURS: [RGBColor; 4] = [BLUE, RED, GREEN, MAGENTA];
const MIB: f64 = (1 << 20) as f64;

/// A plot as SVG text.
type Plot = Result<String, Box<dyn std::error::Error>>;

/// Writes the page to `path`.
pub(crate) fn write(path: &Path, report: &Report) -> anyhow::Result<()> {
    let phases = &report.phases;
    let plots = [
        (Some(throughput(phases)), "Throughput in thousands of calls a second, over the seconds of each phase; one point for each 0.1 s."),
        (Some(latency(phases)), "Latency in microseconds from the intended start, over the share of calls; both axes are logarithmic."),
        (
            memory(phases),
            "DRAM in MiB over the seconds of a phase: bytes that the cache has accounted for, and resident anonymous memory of the process.",
        ),
    ];
    let drawn = |(plot, caption): (Option<Plot>, &str)| Some(plot?.map(|plot| (plot, caption.to_owned())));
    let plots: Vec<_> =
        plots.into_iter().filter_map(drawn).collect::<Result<_, _>>().map_err(|error| anyhow!("cannot draw a plot: {error}"))?;
    html::write(path, &format!("everwarm bench {}", report.workload), &plots, &[report.describe(), report.table()].join("\n\n"))
}

fn throughput(phases: &[Row]) -> Plot {
    let rates = |row: &Row| -> Vec<(f64, f64)> {
        let rate = |pair: &[(f64, u64)]| (pair[1].0, (pair[1].1 - pair[0].1) as f64 / (pair[1].0 - pair[0].0).max(1e-3) / 1e3);
        row.series.windows(2).map(rate).collect()
    };
    over_time("1000 calls/s", phases.iter().map(|row| (row.name.to_owned(), rates(row))).collect())
}

/// Plots memory over time; none if no phase has samples, since only phases of a given duration do.
fn memory(phases: &[Row]) -> Option<Plot> {
    let mut curves = Vec::new();
    for row in phases.iter().filter(|row| !row.gauges.is_empty()) {
        let points = |of: &dyn Fn(&Gauge) -> Option<u64>| -> Vec<(f64, f64)> {
            row.gauges.iter().filter_map(|gauge| Some((gauge.seconds, of(gauge)? as f64 / MIB))).collect()
        };
        curves.push((format!("{}, accounted for", row.name), points(&|gauge| Some(gauge.memory_bytes))));
        curves.push((format!("{}, resident", row.name), points(&|gauge| gauge.resident_bytes)));
    }
    (!curves.is_empty()).then(|| over_time("MiB", curves))
}

/// Plots curves over seconds; both axes begin at zero. `unit` labels the vertical axis.
fn over_time(unit: &str, curves: Vec<(String, Vec<(f64, f64)>)>) -> Plot {
    let most = |of: fn(&(f64, f64)) -> f64| curves.iter().flat_map(|(_, points)| points).map(of).fold(1e-3, f64::max);
    let (width, height) = (most(|point| point.0), 1.1 * most(|point| point.1));
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart =
            ChartBuilder::on(&area).margin(10).x_label_area_size(36).y_label_area_size(60).build_cartesian_2d(0.0..width, 0.0..height)?;
        chart.configure_mesh().x_desc("s").y_desc(unit).bold_line_style(BLACK.mix(0.08)).light_line_style(WHITE).draw()?;
        for ((name, points), colour) in curves.into_iter().zip(COLOURS.into_iter().cycle()) {
            let series = chart.draw_series(LineSeries::new(points, colour))?;
            series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
        }
        chart.configure_series_labels().position(SeriesLabelPosition::LowerRight).border_style(BLACK).background_style(WHITE).draw()?;
        area.present()?;
    }
    Ok(svg)
}

/// Plots latency over `1 / (1 - quantile)`, so that each additional nine takes the same width.
fn latency(phases: &[Row]) -> Plot {
    const NINES: f64 = 5.0;
    let mut curves = Vec::new();
    for row in phases {
        for (kind, histogram) in ["reads", "writes"].into_iter().zip(&row.histograms).filter(|(_, histogram)| !histogram.is_empty()) {
            let point = |step: u32| {
                let rarity = 10f64.powf(f64::from(step) * NINES / 100.0);
                (rarity, (histogram.value_at_quantile(1.0 - 1.0 / rarity) as f64 / 1e3).max(0.01))
            };
            curves.push((format!("{}, {kind}", row.name), (0..=100).map(point).collect::<Vec<_>>()));
        }
    }
    let all = || curves.iter().flat_map(|(_, points)| points).map(|point| point.1);
    let (low, high) = (all().fold(f64::MAX, f64::min).min(1.0), 1.2 * all().fold(1.0, f64::max));
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let (x, y) = ((1.0..10f64.powf(NINES)).log_scale(), (low..high).log_scale());
        let mut chart = ChartBuilder::on(&area).margin(10).x_label_area_size(36).y_label_area_size(60).build_cartesian_2d(x, y)?;
        let share =
            |rarity: &f64| format!("{:.5}", 100.0 * (1.0 - 1.0 / rarity)).trim_end_matches('0').trim_end_matches('.').to_owned() + " %";
        chart.configure_mesh().x_label_formatter(&share).y_desc("us").bold_line_style(BLACK.mix(0.08)).light_line_style(WHITE).draw()?;
        for ((name, points), colour) in curves.into_iter().zip(COLOURS.into_iter().cycle()) {
            let series = chart.draw_series(LineSeries::new(points, colour))?;
            series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
        }
        chart.configure_series_labels().position(SeriesLabelPosition::UpperLeft).border_style(BLACK).background_style(WHITE).draw()?;
        area.present()?;
    }
    Ok(svg)
}
