//! Attention in both modes, over pages in any order and passes of any size.

use half::bf16;
use proptest::prelude::*;

use super::super::heads::prepare_heads;
use super::heads::{SIZES, rotation};
use super::*;

/// A KV cache with its copies.
struct Cache {
    heads: Heads,
    exact: Pages<Vec<bf16>>,
    copies: QuantizedPages<Vec<u8>, Vec<f32>>,
}

type CopiesMut<'a> = QuantizedPages<&'a mut [u8], &'a mut [f32]>;

impl Cache {
    fn new(heads: Heads, pages: usize) -> Cache {
        let values = || vec![bf16::ZERO; pages * PAGE * heads.kv_width()];
        let bytes = || vec![0; pages * page_bytes(heads)];
        let scales = || vec![0.0; pages * PAGE * heads.kv];
        let copies = QuantizedPages { keys: bytes(), values: bytes(), key_scales: scales(), value_scales: scales() };
        Cache { heads, exact: Pages { keys: values(), values: values() }, copies }
    }

    /// A cache whose pages have all been in use, by sequences of the worst kind.
    fn used(level: Level, heads: Heads, pages: usize, seed: u64) -> Cache {
        let mut cache = Cache::new(heads, pages);
        for (salt, values) in [&mut cache.exact.keys, &mut cache.exact.values].into_iter().enumerate() {
            let junk = junk(seed ^ salt as u64, values.len());
            values.iter_mut().zip(junk).for_each(|(to, junk)| *to = bf16::from_f32(junk));
        }
        cache.copy(level, &Segment { row: 0, rows: pages * PAGE, start: 0, pages: (0..pages as u32).collect() });
        cache
    }

    fn parts(&mut self) -> (Pages<&mut [bf16]>, CopiesMut<'_>) {
        let (exact, copies) = (&mut self.exact, &mut self.copies);
        let copies = QuantizedPages {
            keys: &mut copies.keys[..],
            values: &mut copies.values[..],
            key_scales: &mut copies.key_scales[..],
            value_scales: &mut copies.value_scales[..],
        };
        (Pages { keys: &mut exact.keys, values: &mut exact.values }, copies)
    }

    fn copy(&mut self, level: Level, segment: &Segment) {
        let heads = self.heads;
        let (Pages { keys, values }, copies) = self.parts();
        copy_imported(level, heads, segment, &Pages { keys: &*keys, values: &*values }, copies);
    }

    /// Takes positions over from another cache, whose sequence has the pages `from`.
    fn import(&mut self, level: Level, segment: &Segment, other: &Cache, from: &[u32]) {
        let theirs = Segment { pages: from.to_vec(), ..segment.clone() };
        let width = self.heads.kv_width();
        for ((to, rows), (from, _)) in segment.runs().zip(theirs.runs()) {
            let (to, from) = (to * width..(to + rows.len()) * width, from * width..(from + rows.len()) * width);
            self.exact.keys[to.clone()].copy_from_slice(&other.exact.keys[from.clone()]);
            self.exact.values[to].copy_from_slice(&other.exact.values[from]);
        }
        self.copy(level, segment);
    }
}

/// A sequence, and how it comes: in parts, of which the first may be imported.
#[derive(Clone, Debug)]
struct Plan {
    len: usize,
    parts: Vec<usize>,
    import: bool,
}

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    attention: Attention,
    pairs: usize,
    normed: bool,
    plans: Vec<Plan>,
}

/// What a case computes with.
struct Data {
    /// Of each sequence `[len, row width]`.
    qkv: Vec<Vec<f32>>,
    norms: [Vec<f32>; 2],
}

impl Case {
    fn data(&self) -> Data {
        let heads = self.attention.heads;
        let qkv = (0..).zip(&self.plans).map(|(index, plan)| {
            let mut qkv = numbers(self.seed ^ index, plan.len * heads.row_width());
            // Larger queries make attention choose; some don't, being zero.
            for (row, qkv) in qkv.chunks_mut(heads.row_width()).enumerate() {
                let factor = if row % 11 == 5 { 0.0 } else { 4.0 };
                qkv[..heads.query_width()].iter_mut().for_each(|x| *x *= factor);
            }
            qkv
        });
        let weight = |salt: u64| numbers(self.seed ^ salt, heads.size).iter().map(|x| 1.0 + x / 2.0).collect();
        Data { qkv: qkv.collect(), norms: [weight(100), weight(101)] }
    }

    fn norms<'a>(&self, data: &'a Data) -> Option<HeadNorms<'a>> {
        let [queries, keys] = &data.norms;
        self.normed.then_some(HeadNorms { queries, keys, epsilon: 1e-6 })
    }

    /// One pass over segments of the sequences that `who` tells.
    fn pass(
        &self,
        level: Level,
        mode: Mode,
        data: &Data,
        cache: &mut Cache,
        segments: &[Segment],
        who: &[usize],
    ) -> Vec<f32> {
        let heads = self.attention.heads;
        let rows = |(segment, who): (&Segment, &usize)| {
            let width = heads.row_width();
            data.qkv[*who][segment.start * width..(segment.start + segment.rows) * width].to_vec()
        };
        let qkv = segments.iter().zip(who).flat_map(rows).collect::<Vec<f32>>();
        let positions = segments.iter().flat_map(|segment| segment.start..segment.start + segment.rows);
        let turns = rotation(self.pairs, positions);
        let mut out = vec![f32::NAN; qkv.len() / heads.row_width() * heads.query_width()];
        let (pages, copies) = cache.parts();
        let copies = (mode == Mode::Fast).then_some(copies);
        attention(level, mode, self.attention, &qkv, self.norms(data), &turns, segments, pages, copies, &mut out);
        out
    }

    /// A sequence alone, in one pass, in new pages in their order; with its cache and pages.
    fn alone(&self, mode: Mode, data: &Data, index: usize) -> (Vec<f32>, Cache, Vec<u32>) {
        let rows = self.plans[index].len;
        let pages: Vec<u32> = (0..rows.div_ceil(PAGE) as u32).collect();
        let mut cache = Cache::new(self.attention.heads, pages.len());
        let segment = Segment { row: 0, rows, start: 0, pages: pages.clone() };
        let out = self.pass(Level::best(), mode, data, &mut cache, &[segment], &[index]);
        (out, cache, pages)
    }

    /// All sequences side by side in used pages, each by its parts, and one more that is junk. Compares what they compute.
    fn together(
        &self,
        level: Level,
        mode: Mode,
        data: &Data,
        expected: &[(Vec<f32>, Cache, Vec<u32>)],
    ) -> Result<(), TestCaseError> {
        let heads = self.attention.heads;
        let needed: usize = self.plans.iter().map(|plan| plan.len.div_ceil(PAGE)).sum();
        let mut cache = Cache::used(level, heads, needed + 2, self.seed);
        let mut free: Vec<u32> = (0..needed as u32 + 2).collect();
        let keys = numbers(self.seed ^ 200, free.len());
        free.sort_by(|a, b| keys[*a as usize].total_cmp(&keys[*b as usize]));
        let mut held: Vec<(usize, Vec<u32>)> = vec![(0, Vec::new()); self.plans.len()];
        for round in 0.. {
            let (mut segments, mut who) = (Vec::new(), Vec::new());
            let mut row = 0;
            for (index, plan) in self.plans.iter().enumerate().rev() {
                let (done, pages) = &mut held[index];
                let (start, rows) = (*done, plan.parts[round % plan.parts.len()].min(plan.len - *done));
                *done += rows;
                while pages.len() < done.div_ceil(PAGE) {
                    pages.extend(free.pop());
                }
                let segment = Segment { row, rows, start, pages: pages.clone() };
                if rows == 0 {
                    continue;
                } else if round == 0 && plan.import {
                    let (_, other, from) = &expected[index];
                    cache.import(level, &Segment { row: 0, ..segment }, other, from);
                } else {
                    segments.push(segment);
                    who.push(index);
                    row += rows;
                }
            }
            if segments.is_empty() && round > 0 {
                return Ok(());
            }
            let out = self.pass(level, mode, data, &mut cache, &segments, &who);
            let width = heads.query_width();
            for (segment, index) in segments.iter().zip(who).filter(|(_, index)| *index < expected.len()) {
                let found = &out[segment.row * width..(segment.row + segment.rows) * width];
                let expected = &expected[index].0[segment.start * width..(segment.start + segment.rows) * width];
                prop_assert_eq!(
                    bits(found),
                    bits(expected),
                    "{:?}, {:?}: {:?} of sequence {}",
                    level,
                    mode,
                    segment,
                    index
                );
            }
        }
        Ok(())
    }

    /// Attention as its formula says, in f64, on keys and values in bf16.
    fn plain(&self, data: &Data, index: usize) -> Vec<f64> {
        let Attention { heads, scale, .. } = self.attention;
        let (size, len) = (heads.size, self.plans[index].len);
        let qkv = &data.qkv[index];
        let prepared = prepare_heads(Level::best(), heads, qkv, self.norms(data), &rotation(self.pairs, 0..len));
        let rounded = |x: f32| bf16::from_f32(x).to_f64();
        let mut out = Vec::new();
        for row in 0..len {
            for head in 0..heads.queries {
                let kv = head / heads.group();
                let first = self.attention.window.map_or(0, |window| (row + 1).saturating_sub(window));
                let prepared =
                    |row: usize, head: usize| &prepared[(row * (heads.queries + heads.kv) + head) * size..][..size];
                let value = |row: usize| &qkv[(row + 1) * heads.row_width() - heads.kv_width() + kv * size..][..size];
                let weights: Vec<f64> = (first..=row)
                    .map(|position| {
                        let key = prepared(position, heads.queries + kv);
                        let products = prepared(row, head).iter().zip(key).map(|(q, k)| f64::from(*q) * rounded(*k));
                        (products.sum::<f64>() * f64::from(scale)).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                let mut sums = vec![0.0; size];
                for (position, weight) in (first..).zip(weights) {
                    sums.iter_mut().zip(value(position)).for_each(|(sum, v)| *sum += weight / total * rounded(*v));
                }
                out.extend(sums);
            }
        }
        out
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let shape = (1usize..=3, 1usize..=8, prop::sample::select(&SIZES[..]));
    let plan = (any::<u16>(), prop::collection::vec(1usize..90, 1..5), any::<bool>());
    let window = prop_oneof![Just(None), (1usize..70).prop_map(Some), (1usize..600).prop_map(Some)];
    (any::<u64>(), shape, window, any::<bool>(), any::<bool>(), prop::collection::vec(plan, 1..4)).prop_map(
        |(seed, (kv, group, size), window, whole, normed, plans)| {
            let heads = Heads { queries: kv * group, kv, size };
            // Wide heads get shorter sequences, so that no case takes long.
            let most = ((1 << 25) / heads.query_width()).isqrt().min(800);
            let plan = |(len, parts, import): (u16, Vec<usize>, bool)| Plan {
                len: 1 + usize::from(len) % most,
                parts,
                import,
            };
            let scale = 1.0 / (size as f32).sqrt();
            let pairs = if whole { size / 2 } else { size / 4 };
            let attention = Attention { heads, scale, window };
            Case { seed, attention, pairs, normed, plans: plans.into_iter().map(plan).collect() }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn attention_is_its_formula_and_the_same_everywhere(case in cases()) {
        let data = case.data();
        let plain: Vec<Vec<f64>> = (0..case.plans.len()).map(|index| case.plain(&data, index)).collect();
        // Beside the sequences runs one of junk, which nobody compares.
        let mut crowded = case.clone();
        crowded.plans.push(Plan { len: 100, parts: vec![33], import: false });
        let mut crowd = crowded.data();
        let junk_row = crowd.qkv.last().map_or(0, Vec::len);
        crowd.qkv.pop();
        crowd.qkv.push(junk(case.seed, junk_row));

        for mode in [Mode::Exact, Mode::Fast] {
            let alone: Vec<_> = (0..case.plans.len()).map(|index| case.alone(mode, &data, index)).collect();
            for ((found, ..), plain) in alone.iter().zip(&plain) {
                let errors = found.iter().zip(plain).map(|(found, plain)| f64::from(*found) - plain);
                let worst = errors.clone().map(f64::abs).fold(0.0, f64::max);
                let relative = length(errors) / length(plain.iter().copied());
                prop_assert!(relative.is_finite());
                match mode {
                    Mode::Exact => prop_assert!(worst < 1e-5, "error {}", worst),
                    Mode::Fast => prop_assert!(relative < 0.03, "relative error {}", relative),
                }
            }
            for level in Level::all() {
                crowded.together(level, mode, &crowd, &alone)?;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// A page whose weights are so small that their reciprocal overflows, or values that are, make no levels differ.
    #[test]
    fn the_smallest_weights_are_the_same_everywhere(seed: u64, depth in 60.0f32..90.0, exponent in -45i32..0) {
        let heads = Heads { queries: 1, kv: 1, size: 16 };
        let rows = PAGE + 1;
        let mut qkv = vec![0.0; rows * heads.row_width()];
        for (row, qkv) in qkv.chunks_mut(heads.row_width()).enumerate() {
            // Products with all keys but the last, which is zero, are `-depth`.
            (qkv[0], qkv[heads.size]) = if row < PAGE { (1.0, -1.0) } else { (depth, 0.0) };
        }
        let values = numbers(seed, PAGE * heads.size);
        for (qkv, values) in qkv.chunks_mut(heads.row_width()).zip(values.chunks(heads.size)) {
            let small = values.iter().map(|x| (f64::from(*x) * 10f64.powi(exponent)) as f32);
            qkv[2 * heads.size..].iter_mut().zip(small).for_each(|(to, x)| *to = x);
        }
        let turns = rotation(8, std::iter::repeat_n(0, rows));
        let run = |level| {
            let mut cache = Cache::new(heads, 2);
            let (pages, copies) = cache.parts();
            let mut out = vec![f32::NAN; rows * heads.size];
            let segments = [Segment { row: 0, rows, start: 0, pages: vec![0, 1] }];
            let kind = Attention { heads, scale: 1.0, window: None };
            attention(level, Mode::Fast, kind, &qkv, None, &turns, &segments, pages, Some(copies), &mut out);
            out
        };
        let found = run(Level::best());
        for level in Level::all() {
            prop_assert_eq!(bits(&run(level)), bits(&found), "{:?}", level);
        }
        let last = &found[PAGE * heads.size..];
        prop_assert!(last.iter().all(|x| f64::from(x.abs()) < 100.0 * f64::from(-depth).exp() + 1e-37), "{:?}", last);
    }
}
