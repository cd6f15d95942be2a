//! Pictures: lines over an axis, and bars in groups, as SVG.

use std::ops::Range;

use baton_contract::causes;
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::markup::escaped;

/// Width and height in pixels.
const SIZE: (u32, u32) = (760, 400);
/// Colours that people with other eyes tell apart too (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];
/// The value axis of bars by the highest bar: room for the legend above.
const LEGEND: f64 = 1.4;
const FONT: &str = "sans-serif";

/// A named line through points.
#[derive(Clone, Debug)]
pub struct Line {
    /// What the legend calls it.
    pub name: String,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}

/// What stands beside a picture.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// Above it.
    pub title: &'a str,
    /// What the horizontal axis shows, with its unit.
    pub x: &'a str,
    /// What the vertical axis shows, with its unit.
    pub y: &'a str,
}

/// Bars side by side, or on top of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bars {
    /// Side by side.
    Beside,
    /// On top of each other.
    Stacked,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Lines as an SVG document; both axes begin at 0.
pub fn lines(labels: Labels<'_>, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| line.points.iter());
    let (x, y) = (most(points().map(|point| point.0)), most(points().map(|point| point.1)));
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .caption(labels.title, (FONT, 17))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(62)
            .build_cartesian_2d(0.0..x, 0.0..y * 1.04)?;
        chart
            .configure_mesh()
            .x_desc(labels.x)
            .y_desc(labels.y)
            .light_line_style(TRANSPARENT)
            .label_style((FONT, 12))
            .axis_desc_style((FONT, 13))
            .draw()?;
        for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            let series = LineSeries::new(line.points.iter().copied(), style);
            let legend = move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style);
            chart.draw_series(series)?.label(line.name.clone()).legend(legend);
        }
        // A single line is what the title says.
        if lines.len() > 1 {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .background_style(WHITE.mix(0.8))
                .label_font((FONT, 12))
                .draw()?;
        }
        Ok(())
    })
}

/// Groups of bars, each with as many values as there are names, as an SVG document; the value axis begins at 0.
pub fn bars(labels: Labels<'_>, names: &[&str], groups: &[(String, Vec<f64>)], bars: Bars) -> String {
    let top = match bars {
        Bars::Beside => most(groups.iter().flat_map(|(_, values)| values.iter().copied())),
        Bars::Stacked => most(groups.iter().map(|(_, values)| values.iter().sum())),
    };
    let named: Vec<(f64, &str)> =
        groups.iter().enumerate().map(|(place, group)| (place as f64 + 0.5, &*group.0)).collect();
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .caption(labels.title, (FONT, 17))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(62)
            .build_cartesian_2d(0.0..groups.len().max(1) as f64, 0.0..top * LEGEND)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(0)
            .x_desc(labels.x)
            .y_desc(labels.y)
            .light_line_style(TRANSPARENT)
            .label_style((FONT, 12))
            .axis_desc_style((FONT, 13))
            .draw()?;
        for (place, name) in names.iter().enumerate() {
            let colour = COLOURS[place % COLOURS.len()];
            let bar = |(group, (_, values)): (usize, &(String, Vec<f64>))| {
                let (x, y) = extent(bars, group, place, names.len(), values);
                Rectangle::new([(x.start, y.start), (x.end, y.end)], colour.filled())
            };
            let series = chart.draw_series(groups.iter().enumerate().map(bar))?;
            series.label(*name).legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .label_font((FONT, 12))
            .draw()?;
        let style = (FONT, 12).into_text_style(area).pos(Pos::new(HPos::Center, VPos::Top));
        for (x, name) in named {
            let (x, y) = chart.backend_coord(&(x, 0.0));
            area.draw_text(name, &style, (x, y + 7))?;
        }
        Ok(())
    })
}

/// Where a group's bar lies: from and to, along both axes.
fn extent(bars: Bars, group: usize, place: usize, count: usize, values: &[f64]) -> (Range<f64>, Range<f64>) {
    let (left, value) = (group as f64, values.get(place).copied().unwrap_or(0.0));
    match bars {
        Bars::Beside => {
            let width = 0.8 / count.max(1) as f64;
            let from = left + 0.1 + width * place as f64;
            (from..from + width * 0.92, 0.0..value)
        }
        Bars::Stacked => {
            let below: f64 = values.iter().take(place).sum();
            (left + 0.2..left + 0.8, below..below + value)
        }
    }
}

/// The top of an axis: above 0 also where there is nothing.
fn most(values: impl Iterator<Item = f64>) -> f64 {
    let most = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
    if most > 0.0 { most } else { 1.0 }
}

/// The picture, or one that says why there is none: a report is of use without it too.
fn draw(picture: impl FnOnce(&Area<'_>) -> Drawn) -> String {
    let mut svg = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(Into::into).and_then(|()| picture(&area)).and_then(|()| Ok(area.present()?))
    };
    match drawn {
        Ok(()) => svg,
        Err(error) => note(&causes(error.as_ref())),
    }
}

fn note(problem: &str) -> String {
    let problem = escaped(problem);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"40\"><text y=\"20\">{problem}</text></svg>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: Labels<'_> = Labels { title: "a <title>", x: "x", y: "y" };

    #[test]
    fn pictures_hold_what_they_are_given() {
        let line = |name: &str| Line { name: name.into(), points: vec![(0.0, 0.0), (1.0, 2.0), (3.0, 1.0)] };
        let svg = lines(LABELS, &[line("first"), line("second")]);
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for text in ["a &lt;title&gt;", "first", "second"] {
            assert!(svg.contains(text), "{text} is missing: {svg}");
        }
        let groups = [("2:4".to_owned(), vec![1.0, 2.0]), ("4:2".to_owned(), vec![3.0, 0.5])];
        let stacked = bars(LABELS, &["queue", "decode"], &groups, Bars::Stacked);
        assert!(stacked.contains("2:4") && stacked.contains("queue"), "{stacked}");
        // Nothing to draw is no reason to fail.
        assert!(lines(LABELS, &[]).starts_with("<svg "));
        assert!(bars(LABELS, &[], &[], Bars::Beside).starts_with("<svg "));
    }

    #[test]
    fn stacked_bars_stand_on_each_other_and_others_beside() {
        let values = [1.0, 2.0, 4.0];
        assert_eq!(extent(Bars::Stacked, 2, 2, 3, &values), (2.2..2.8, 3.0..7.0));
        let (first, second) = (extent(Bars::Beside, 0, 0, 3, &values), extent(Bars::Beside, 0, 1, 3, &values));
        assert!(first.0.end < second.0.start && second.1 == (0.0..2.0), "{first:?} {second:?}");
    }
}
