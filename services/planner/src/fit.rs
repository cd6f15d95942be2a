//! Coefficients of a cost model from measured times: least squares without negative coefficients.

/// What was measured at one size: the model's features, and seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample<const N: usize> {
    /// What each coefficient is multiplied with.
    pub features: [f64; N],
    /// Above 0.
    pub seconds: f64,
}

/// Coefficients, and how far the times they give are from the measured ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fitted<const N: usize> {
    /// One for each feature, none below 0.
    pub coefficients: [f64; N],
    /// Errors as shares of the measured times: the mean.
    pub mean_error: f64,
    /// The largest.
    pub max_error: f64,
}

/// The coefficients that explain the samples best, by the squares of the relative errors, so that short times count as much as
/// long ones. None without samples, or with features that are all zero.
///
/// The best solution without negative coefficients is the unconstrained one of some subset of the features (the others are
/// zero), and for the few features of a cost model all subsets can be tried.
pub fn fit<const N: usize>(samples: &[Sample<N>]) -> Option<Fitted<N>> {
    let weighted: Vec<[f64; N]> =
        samples.iter().map(|it| it.features.map(|feature| feature / it.seconds.max(1e-12))).collect();
    // Features differ by ten orders of magnitude: each is brought to about 1.
    let scale: [f64; N] =
        std::array::from_fn(|column| weighted.iter().map(|row| row[column].abs()).fold(0.0, f64::max));
    let mut best: Option<(f64, [f64; N])> = None;
    for subset in 1..1usize << N {
        let columns: Vec<usize> = (0..N).filter(|column| subset >> column & 1 == 1).collect();
        if columns.iter().any(|&column| scale[column] == 0.0) {
            continue;
        }
        let value = |row: &[f64; N], column: usize| row[column] / scale[column];
        let matrix: Vec<Vec<f64>> = columns
            .iter()
            .map(|&a| {
                let products = columns.iter().map(|&b| weighted.iter().map(|row| value(row, a) * value(row, b)).sum());
                let target = weighted.iter().map(|row| value(row, a)).sum();
                products.chain([target]).collect()
            })
            .collect();
        let Some(solution) = solve(matrix) else { continue };
        if solution.iter().any(|value| *value < 0.0) {
            continue;
        }
        let mut coefficients = [0.0; N];
        for (&column, value) in columns.iter().zip(solution) {
            coefficients[column] = value / scale[column];
        }
        let residual: f64 = errors(samples, &coefficients).map(|error| error * error).sum();
        if best.is_none_or(|(least, _)| residual < least) {
            best = Some((residual, coefficients));
        }
    }
    let (_, coefficients) = best?;
    Some(Fitted {
        coefficients,
        mean_error: errors(samples, &coefficients).sum::<f64>() / samples.len() as f64,
        max_error: errors(samples, &coefficients).fold(0.0, f64::max),
    })
}

/// How far each sample is off, as a share of what was measured.
fn errors<const N: usize>(samples: &[Sample<N>], coefficients: &[f64; N]) -> impl Iterator<Item = f64> {
    samples.iter().map(move |sample| {
        let seconds: f64 = sample.features.iter().zip(coefficients).map(|(feature, by)| feature * by).sum();
        (seconds - sample.seconds).abs() / sample.seconds.max(1e-12)
    })
}

/// Gauss-Jordan elimination of rows that end with the right-hand side; none if they depend on each other.
fn solve(mut rows: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let count = rows.len();
    for column in 0..count {
        let pivot = (column..count).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))?;
        rows.swap(column, pivot);
        if rows[column][column].abs() < 1e-12 {
            return None;
        }
        let pivot = rows[column].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(index, _)| *index != column) {
            let factor = row[column] / pivot[column];
            row.iter_mut().zip(&pivot).for_each(|(value, above)| *value -= factor * above);
        }
    }
    Some(rows.iter().enumerate().map(|(index, row)| row[count] / row[index]).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn coefficients_are_found_again(
            exact in [0.0..1.0f64, 0.0..0.1, 1e-6..1e-3],
            sizes in prop::collection::vec((1u32..64, 1u32..8192), 12..30),
            noise in 0.0..0.05f64,
        ) {
            prop_assume!(sizes.iter().map(|size| size.0).collect::<std::collections::BTreeSet<_>>().len() > 4);
            let samples: Vec<Sample<3>> = sizes.iter().enumerate().map(|(index, &(batch, tokens))| {
                let features = [1.0, f64::from(batch), f64::from(tokens)];
                let seconds: f64 = features.iter().zip(exact).map(|(feature, by)| feature * by).sum();
                let sign = if index % 2 == 0 { 1.0 } else { -1.0 };
                Sample { features, seconds: seconds * (1.0 + sign * noise) }
            }).collect();
            let fitted = fit(&samples).unwrap();
            prop_assert!(fitted.coefficients.iter().all(|value| *value >= 0.0));
            // The exact coefficients are off by the noise, so the best are off no further, in the mean of the squares.
            prop_assert!(fitted.mean_error <= noise * 1.1 + 1e-6, "{fitted:?}");
        }
    }

    #[test]
    fn what_would_be_negative_is_zero() {
        // The longer, the sooner done: no model without negative coefficients but a constant one.
        let samples = [1.0, 2.0, 3.0].map(|size| Sample { features: [1.0, size], seconds: 4.0 - size });
        let fitted = fit(&samples).unwrap();
        assert!(fitted.coefficients[0] > 0.0 && fitted.coefficients[1] == 0.0, "{fitted:?}");
        assert_eq!(fit::<2>(&[]), None);
    }
}
