//! Real chunks put into a store and got from it.

use std::{fs, sync::Arc, time::Duration};

use baton_contract::kv::{Block, Shape};
use baton_planner::{
    fit::{Sample, fit},
    profile::{Host, Store as Costs},
};
use baton_provision::home::home;
use baton_storage::{codec::Codec, key, kv::KvStore, store::Store};
use nix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, sleep};

use crate::{error::Error, runs::Runs};

/// After so long nothing of a put is under way.
const SETTLES: Duration = Duration::from_millis(200);

/// What was found.
pub(super) struct Measured {
    pub(super) costs: Costs,
    /// Processor time, of packing and unpacking too; nothing of jobs.
    pub(super) host: Host,
    /// What a token takes in the store, of the longest chunk.
    pub(super) bytes_per_token: f64,
    /// Of puts and gets together.
    pub(super) mean_error: f64,
    pub(super) max_error: f64,
}

/// Puts and gets each block several times; without a URL in a directory of its own, which is removed.
pub(super) async fn measure(
    url: Option<&str>,
    shape: Shape,
    codec: Codec,
    blocks: &[Block],
    repeat: usize,
) -> Result<Measured, Error> {
    let directory = home()?.join("calibrate").join(std::process::id().to_string());
    let own = format!("file://{}", directory.display());
    if url.is_none() {
        fs::create_dir_all(&directory).map_err(|source| Error::Create { path: directory.clone(), source })?;
    }
    let measured = chunks(KvStore::new(Store::open_unsynced(url.unwrap_or(&own))?, shape, codec), blocks, repeat).await;
    if url.is_none() {
        // Nothing is lost if it stays.
        let _ = fs::remove_dir_all(&directory);
    }
    measured
}

async fn chunks(store: KvStore, blocks: &[Block], repeat: usize) -> Result<Measured, Error> {
    // Names that no other run has.
    let salt = uuid::Uuid::now_v7();
    let root = store.root(&[0; 32], salt.as_bytes());
    let (mut puts, mut gets, mut bytes_per_token) = (Vec::new(), Vec::new(), 0.0);
    let (mut put_cpu_s, mut get_cpu_s, mut all_bytes) = (0.0, 0.0, 0.0);
    for (number, block) in (0u32..).zip(blocks) {
        let block = Arc::new(block.clone());
        let (mut put_s, mut get_s, mut bytes) = (Vec::new(), Vec::new(), 0);
        let (mut pieces, before) = (Vec::new(), cpu_s()?);
        // The first warms up.
        for run in 0..=repeat as u32 {
            let tokens = vec![number << 16 | run; block.tokens];
            let Some(piece) = key::plan(&root, &tokens, block.tokens, "calibrate").pop() else { continue };
            let started = Instant::now();
            bytes = store.put_piece(&piece.id, piece.kind, block.clone()).await?.stored_bytes;
            if run > 0 {
                put_s.push(started.elapsed().as_secs_f64());
            }
            pieces.push(piece);
        }
        // What is made ready for the next puts is part of them.
        sleep(SETTLES).await;
        let between = cpu_s()?;
        for (run, piece) in pieces.iter().enumerate() {
            let started = Instant::now();
            let fetched = store.get_piece(&piece.id, piece.kind, block.tokens).await?;
            if fetched.is_none() {
                return Err(Error::LostChunk);
            }
            if run > 0 {
                get_s.push(started.elapsed().as_secs_f64());
            }
        }
        put_cpu_s += between - before;
        get_cpu_s += cpu_s()? - between;
        all_bytes += pieces.len() as f64 * bytes as f64;
        let features = [1.0, bytes as f64];
        puts.push(Sample { features, seconds: Runs::of(put_s).median });
        gets.push(Sample { features, seconds: Runs::of(get_s).median });
        bytes_per_token = bytes as f64 / block.tokens.max(1) as f64;
    }
    let (puts, gets) = fit(&puts).zip(fit(&gets)).ok_or(Error::NoFit { what: "the store" })?;
    let ([put_s, put_s_per_byte], [get_s, get_s_per_byte]) = (puts.coefficients, gets.coefficients);
    Ok(Measured {
        costs: Costs { put_s, put_s_per_byte, get_s, get_s_per_byte },
        host: Host {
            put_cpu_s_per_byte: put_cpu_s / f64::max(all_bytes, 1.0),
            get_cpu_s_per_byte: get_cpu_s / f64::max(all_bytes, 1.0),
            ..Host::default()
        },
        bytes_per_token,
        mean_error: (puts.mean_error + gets.mean_error) / 2.0,
        max_error: puts.max_error.max(gets.max_error),
    })
}

/// Seconds of processor time that this process has taken.
fn cpu_s() -> Result<f64, Error> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_err(Error::Clock)?;
    Ok(Duration::from(time).as_secs_f64())
}
