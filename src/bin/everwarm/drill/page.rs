//! The report as an HTML page: the settings, the results, and a plot of the hit ratio around the
//! kills.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;

use super::report::Report;
use super::warmth::{HitCounts, WINDOW};
use crate::html;

/// Most points of a curve.
const POINTS: usize = 400;

/// Hit ratios over the requests, of the victim and of its twin.
pub(crate) struct Curves {
    /// Requests that each point covers.
    pub(crate) step: usize,
    pub(crate) victim: Vec<HitCounts>,
    pub(crate) twin: Vec<HitCounts>,
}

impl Curves {
    /// Requests that each point covers, of a curve over `requests`.
    pub(crate) fn step(requests: usize) -> usize {
        requests.div_ceil(POINTS).max(1)
    }
}

/// Writes the page to `path`.
pub(crate) fn write(path: &Path, description: &str, report: &Report, curves: &Curves) -> anyhow::Result<()> {
    let plot = plot(report, curves).map_err(|error| anyhow!("cannot draw the plot: {error}"))?;
    let caption = format!(
        "Hit ratio in % of the gets, over the requests; both caches served the same requests. Vertical lines are kills. Each point covers {} \
         requests; <em>before</em> and <em>first 100k</em> in the table cover {WINDOW}.",
        curves.step
    );
    let text = [description, "\n\n", &report.details(), &report.totals()].concat();
    html::write(path, "everwarm drill", &[(plot, caption)], &text)
}

fn plot(report: &Report, curves: &Curves) -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (1160, 420)).into_drawing_area();
        area.fill(&WHITE)?;
        let width = (curves.victim.len() * curves.step).max(1);
        let mut chart =
            ChartBuilder::on(&area).margin(10).x_label_area_size(36).y_label_area_size(44).build_cartesian_2d(0..width, 0.0..100.0)?;
        chart.configure_mesh().x_desc("request").y_desc("hit ratio, %").bold_line_style(BLACK.mix(0.08)).light_line_style(WHITE).draw()?;
        for kill in report.kill_requests() {
            chart.draw_series(LineSeries::new([(kill, 0.0), (kill, 100.0)], BLACK.mix(0.6)))?;
        }
        for (name, curve, colour) in [("not killed", &curves.twin, BLUE), ("killed", &curves.victim, RED)] {
            let points = curve.iter().enumerate().filter_map(|(n, counts)| Some((n * curves.step, 100.0 * counts.hit_ratio()?)));
            let series = chart.draw_series(LineSeries::new(points, colour))?;
            series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
        }
        chart.configure_series_labels().position(SeriesLabelPosition::LowerRight).border_style(BLACK).background_style(WHITE).draw()?;
        area.present()?;
    }
    Ok(svg)
}
