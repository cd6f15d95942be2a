//! The hit rates as a picture: shares of blocks and of tokens over the logarithm of the cache's size.

use std::fmt::Write;

use super::report::{Bounded, Report};

/// The picture and, within it, where the lines are drawn, in pixels.
const PICTURE: (f64, f64) = (720.0, 420.0);
const LEFT: f64 = 64.0;
const RIGHT: f64 = 696.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 360.0;
/// Half of what a letter of a size's name takes at most.
const HALF_LETTER: f64 = 4.0;

/// What is drawn: its name, colour, and share by cache and without a bound.
type Line<'r> = (&'static str, &'static str, fn(&Bounded) -> f64, f64);

/// The hit rates of a replay as an SVG document.
pub fn svg(report: &Report) -> String {
    let mut caches: Vec<&Bounded> = report.caches.iter().collect();
    caches.sort_by_key(|cache| cache.bytes);
    let lines: [Line<'_>; 2] = [
        ("tokens", "#d55e00", |cache| cache.hits.token_hit_rate, report.unbounded.token_hit_rate),
        ("blocks", "#0072b2", |cache| cache.hits.block_hit_rate, report.unbounded.block_hit_rate),
    ];
    let log = |cache: &&Bounded| (cache.bytes.max(1) as f64).ln();
    let (first, last) = (caches.first().map_or(0.0, log), caches.last().map_or(0.0, log));
    // A single size stands at the left.
    let x = |cache: &Bounded| LEFT + (log(&cache) - first) / (last - first).max(1e-9) * (RIGHT - LEFT);
    let best = lines.iter().map(|line| line.3).fold(0.0, f64::max);
    let steps = (best * 10.0).ceil().max(1.0);
    let y = |share: f64| BOTTOM - share * 10.0 / steps * (BOTTOM - TOP);

    let (width, height) = PICTURE;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"16\">Share of the prompts found in a cache, {} requests</text>\n",
        report.requests
    );
    // Writing to a string cannot fail.
    for step in 0..=steps as u32 {
        let y = y(f64::from(step) / 10.0);
        let _ = writeln!(out, "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#dddddd\"/>");
        let _ =
            writeln!(out, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{} %</text>", LEFT - 8.0, y + 4.0, step * 10);
    }
    let mut free = f64::NEG_INFINITY;
    for cache in &caches {
        let (x, name) = (x(cache), cache.cache.to_string());
        let half = HALF_LETTER * (name.len() + 1) as f64;
        // Names would overlap where sizes are close to each other.
        if x - half >= free {
            let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{name}</text>", BOTTOM + 20.0);
            free = x + half;
        }
    }
    let middle = (LEFT + RIGHT) / 2.0;
    let _ =
        writeln!(out, "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">size of the cache</text>", BOTTOM + 44.0);
    for (index, (name, colour, share, unbounded)) in (0..).zip(lines) {
        let y_unbounded = y(unbounded);
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {y_unbounded:.1}H{RIGHT}\" stroke=\"{colour}\" stroke-dasharray=\"6 4\" opacity=\"0.7\"/>"
        );
        let points: Vec<(f64, f64)> = caches.iter().map(|cache| (x(cache), y(share(cache)))).collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let path = path.join(" ");
        let _ = writeln!(out, "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
        for (x, y) in points {
            let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>");
        }
        let (x, percent) = (LEFT + 220.0 * f64::from(index), unbounded * 100.0);
        let _ = writeln!(out, "<text x=\"{x}\" y=\"44\" fill=\"{colour}\">{name} (unbounded: {percent:.1} %)</text>");
    }
    out + "</svg>\n"
}
