//! What the figures of one load say, as a sentence.

use super::cell::Cell;

/// Splits that differ by less do as well as each other.
const ALIKE: f64 = 0.05;
/// A pool that does as much of what it can has no room left.
const FULL: f64 = 0.85;

/// A load's splits compared; there is at least one.
pub fn of(cells: &[&Cell]) -> String {
    let order = |one: &&&Cell, two: &&&Cell| one.output_throughput.total_cmp(&two.output_throughput);
    let (Some(best), Some(worst)) = (cells.iter().max_by(order), cells.iter().min_by(order)) else {
        return String::new();
    };
    let name = format!("{}: ", best.workload);
    if worst.output_throughput >= best.output_throughput * (1.0 - ALIKE) {
        return name + "all splits are within 5 % of each other: something else than the split decides.";
    }
    let factor = best.output_throughput / worst.output_throughput.max(f64::MIN_POSITIVE);
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let (queue, p, d) =
        (percent(worst.shares[0]), percent(worst.prefill_utilisation), percent(worst.decode_utilisation));
    let why = if worst.prefill_utilisation > worst.decode_utilisation {
        format!("there prefill is {p} busy and jobs wait for it, while decode has work for {d} of its slots")
    } else {
        format!("there decode has work for {d} of its slots and jobs wait for one, while prefill is {p} busy")
    };
    let balance = if best.prefill_utilisation.min(best.decode_utilisation) >= FULL {
        "both pools are full"
    } else if best.prefill_utilisation > best.decode_utilisation {
        "prefill is what limits it"
    } else {
        "decode is what limits it"
    };
    format!(
        "{name}{} carries most, {factor:.2} x as much as {}: {why}, and {queue} of a job's time is queue. With {} {balance}.",
        best.ratio(),
        worst.ratio(),
        best.ratio()
    )
}
