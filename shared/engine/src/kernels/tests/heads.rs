//! What happens to the heads before attention.

use proptest::prelude::*;

use super::super::heads::prepare_heads;
use super::*;

/// Head sizes: powers of two, and others, whose blocks are shorter.
pub(super) const SIZES: [usize; 8] = [16, 32, 48, 64, 80, 96, 128, 256];

/// The turns of rows at these positions.
pub(super) fn rotation(pairs: usize, positions: impl IntoIterator<Item = usize>) -> Rotation {
    let angle = |position, pair| position as f64 * 0.7f64.powi(pair as i32);
    let angles: Vec<f64> =
        positions.into_iter().flat_map(|position| (0..pairs).map(move |pair| angle(position, pair))).collect();
    let turns = |turn: fn(f64) -> f64| angles.iter().map(|angle| turn(*angle) as f32).collect();
    Rotation { pairs, cos: turns(f64::cos), sin: turns(f64::sin) }
}

/// A head by its formulas: norm, rotation, and Sylvester's matrix over each block, whose entry is negative where row and
/// column have an odd number of ones in common.
fn plain(x: &[f32], norm: Option<(&[f32], f32)>, cos: &[f32], sin: &[f32]) -> Vec<f64> {
    let mut head: Vec<f64> = x.iter().copied().map(f64::from).collect();
    if let Some((weight, epsilon)) = norm {
        let mean = head.iter().map(|x| x * x).sum::<f64>() / head.len() as f64;
        let scale = 1.0 / (mean + f64::from(epsilon)).sqrt();
        head.iter_mut().zip(weight).for_each(|(x, weight)| *x *= scale * f64::from(*weight));
    }
    let pairs = cos.len();
    for pair in 0..pairs {
        let (a, b, cos, sin) = (head[pair], head[pairs + pair], f64::from(cos[pair]), f64::from(sin[pair]));
        (head[pair], head[pairs + pair]) = (a * cos - b * sin, b * cos + a * sin);
    }
    let block = head.len() & head.len().wrapping_neg();
    let sign = |row: usize, column: usize| if (row & column).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let mixed = head.chunks(block).flat_map(|head| {
        (0..block).map(|row| {
            let sum: f64 = head.iter().enumerate().map(|(column, x)| sign(row, column) * x).sum();
            sum / (block as f64).sqrt()
        })
    });
    mixed.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn heads_are_their_formulas_and_the_same_everywhere(seed: u64, rows in 1usize..30, kv in 1usize..4, group in 1usize..5,
        size in prop::sample::select(&SIZES[..]), pairs in any::<prop::sample::Index>(), normed: bool) {
        let heads = Heads { queries: kv * group, kv, size };
        let pairs = 1 + pairs.index(size / 2);
        let qkv = numbers(seed, rows * heads.row_width());
        let weights = [1, 2].map(|salt| numbers(seed ^ salt, size));
        let norms = normed.then_some(HeadNorms { queries: &weights[0], keys: &weights[1], epsilon: 1e-6 });
        let turns = rotation(pairs, 5..5 + rows);
        let found = prepare_heads(Level::best(), heads, &qkv, norms, &turns);
        for level in Level::all() {
            prop_assert_eq!(bits(&prepare_heads(level, heads, &qkv, norms, &turns)), bits(&found), "{:?}", level);
        }
        let width = heads.query_width() + heads.kv_width();
        for (row, (qkv, found)) in qkv.chunks(heads.row_width()).zip(found.chunks(width)).enumerate() {
            let alone = prepare_heads(Level::best(), heads, qkv, norms, &rotation(pairs, [5 + row]));
            prop_assert_eq!(bits(&alone), bits(found), "row {} alone", row);
            let turn = row * pairs..(row + 1) * pairs;
            for (index, (x, found)) in qkv.chunks(size).zip(found.chunks(size)).enumerate() {
                let norm = normed.then_some((&weights[usize::from(index >= heads.queries)][..], 1e-6));
                let expected = plain(x, norm, &turns.cos[turn.clone()], &turns.sin[turn.clone()]);
                for (found, expected) in found.iter().zip(expected) {
                    prop_assert!((f64::from(*found) - expected).abs() < 5e-6, "{} is not {}", found, expected);
                }
            }
        }
    }
}
