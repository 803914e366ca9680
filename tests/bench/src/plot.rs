//! The plot: puts a second, and their latency, over the number of clients.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;

use crate::report::PutLoad;
use crate::stats::Summary;

const SIZE: (u32, u32) = (1000, 420);
const OURS: RGBColor = RGBColor(0x1b, 0x6c, 0xa8);
const ETCD: RGBColor = RGBColor(0xc4, 0x4e, 0x1f);
const FONT: (&str, u32) = ("sans-serif", 15);

/// A line of the plot: its name, its colour, whether it is thin, and its figures.
type Line<'a> = (&'a str, RGBColor, bool, Box<dyn Fn(&PutLoad) -> f64>);

/// Draws `puts` into the file `path`.
pub fn draw(puts: &[PutLoad], path: &Path) -> anyhow::Result<()> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    // What the drawing library complains about borrows from it, so only its words are kept.
    let drawn = (|| {
        root.fill(&WHITE).map_err(|e| e.to_string())?;
        let (left, right) = root.split_horizontally(SIZE.0 / 2);
        let pick = |ours: bool, what: fn(&Summary) -> f64| -> Box<dyn Fn(&PutLoad) -> f64> {
            Box::new(move |load| what(if ours { &load.ours } else { &load.etcd }))
        };
        let rate: fn(&Summary) -> f64 = |s| s.rate;
        let p50: fn(&Summary) -> f64 = |s| s.p50_ms;
        let p99: fn(&Summary) -> f64 = |s| s.p99_ms;
        let rates: Vec<Line<'_>> =
            vec![("quorumfs", OURS, false, pick(true, rate)), ("etcd", ETCD, false, pick(false, rate))];
        chart(&left, "puts a second (256 B, three nodes)", puts, &rates)?;
        let latencies: Vec<Line<'_>> = vec![
            ("quorumfs p50", OURS, false, pick(true, p50)),
            ("quorumfs p99", OURS, true, pick(true, p99)),
            ("etcd p50", ETCD, false, pick(false, p50)),
            ("etcd p99", ETCD, true, pick(false, p99)),
        ];
        chart(&right, "latency of a put in ms", puts, &latencies)?;
        root.present().map_err(|e| e.to_string())
    })();
    drawn.map_err(|e: String| anyhow!("drawing {path:?}: {e}"))
}

fn chart(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    puts: &[PutLoad],
    lines: &[Line<'_>],
) -> Result<(), String> {
    let values =
        || lines.iter().flat_map(|line| puts.iter().map(&line.3)).filter(|v| v.is_finite() && *v > 0.0);
    let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(f64::MIN, f64::max));
    let most = puts.iter().map(|load| load.clients).max().unwrap_or(1) as f64;
    if low > high {
        return Err("there is nothing to draw".into());
    }
    // Both axes grow by factors: the aims are factors too.
    let mut chart = ChartBuilder::on(area)
        .caption(title, FONT)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(60)
        .build_cartesian_2d((0.8..most * 1.3).log_scale(), (low * 0.7..high * 1.5).log_scale())
        .map_err(|e| e.to_string())?;
    chart
        .configure_mesh()
        .x_desc("clients")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| if *y >= 10.0 { format!("{y:.0}") } else { format!("{y}") })
        .label_style(FONT)
        .light_line_style(WHITE)
        .draw()
        .map_err(|e| e.to_string())?;
    for (name, colour, thin, figure) in lines {
        let points: Vec<(f64, f64)> = puts.iter().map(|load| (load.clients as f64, figure(load))).collect();
        let style = colour.stroke_width(if *thin { 1 } else { 3 });
        chart
            .draw_series(LineSeries::new(points.clone(), style))
            .map_err(|e| e.to_string())?
            .label(*name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], style));
        chart
            .draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))
            .map_err(|e| e.to_string())?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(FONT)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_plot_is_drawn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plot.svg");
        let summary = Summary { count: 1, errors: 0, rate: 1000.0, p50_ms: 1.0, p99_ms: 3.0 };
        let puts: Vec<_> = [1, 16, 64]
            .map(|clients| PutLoad {
                clients,
                ours: summary,
                etcd: Summary { rate: 500.0, ..summary },
                etcd_tls: summary,
            })
            .into();
        draw(&puts, &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("<svg") && text.contains("quorumfs p99"));
        assert!(draw(&[], &path).is_err());
    }
}
