//! The output and error files of a batch, written as answers come.

use std::num::NonZeroUsize;

use baton_bus::gateways::files::{File, Purpose};
use baton_contract::{JobId, Name, batch::Batch};
use baton_storage::files::{self, Blob, Extent, Files, Upload};
use sha2::{Digest, Sha256};

use super::answers::Answer;
use crate::{
    State,
    files::{blobs_of_run, now, recorded},
};

/// What a run writes.
pub(super) struct Output {
    blobs: [Blob; 2],
    answers: Upload,
    errors: Upload,
}

/// The same, whole.
pub(super) struct Stored([Option<(Blob, Extent)>; 2]);

impl Output {
    /// Each of the two files may have `max_bytes`. They grow no faster than answers come, so one part on its way is enough.
    pub(super) fn begin(files: &Files, tenant: &Name, run: &str, max_bytes: u64) -> Self {
        let blobs = blobs_of_run(tenant, run);
        let [answers, errors] = blobs.map(|blob| files.upload(blob, max_bytes, NonZeroUsize::MIN));
        Self { blobs, answers, errors }
    }

    /// Appends an answer to the file it belongs to, or nothing if it does not fit.
    pub(super) async fn write(&mut self, answer: &Answer) -> Result<(), files::Error> {
        match answer.good {
            true => self.answers.push(&answer.line).await,
            false => self.errors.push(&answer.line).await,
        }
    }

    pub(super) async fn finish(self) -> Result<Stored, files::Error> {
        let [answers, errors] = self.blobs;
        let answers = (answers, self.answers.finish().await?);
        let errors = (errors, self.errors.finish().await?);
        Ok(Stored([answers, errors].map(|written| Some(written).filter(|(_, extent)| extent.bytes > 0))))
    }
}

impl Stored {
    /// Makes files of what has any lines; returns their ids. These follow from the batch, so that a run that repeats this
    /// makes no others.
    pub(super) async fn shelve(
        self,
        state: &State,
        tenant: &Name,
        batch: &Batch,
    ) -> Result<(Option<String>, Option<String>), baton_bus::Error> {
        let (mut ids, created_at) = ([None, None], now(state).await?);
        for ((place, kind), id) in self.0.into_iter().zip(["output", "error"]).zip(&mut ids) {
            let Some((blob, extent)) = place else { continue };
            let file = describe(batch, kind, blob, extent, created_at);
            if let Ok(key) = JobId::new(&file.id) {
                state.stores.files.put(tenant, &key, &file).await?;
                *id = Some(file.id);
            }
        }
        let [output, error] = ids;
        Ok((output, error))
    }
}

fn describe(batch: &Batch, kind: &str, blob: Blob, extent: Extent, created_at: u64) -> File {
    let digest = Sha256::digest(format!("{}/{kind}", batch.order.id).as_bytes());
    let (part_bytes, form, sealed_part_bytes) = recorded(extent);
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    File {
        id: format!("file-{hex}"),
        filename: format!("{}_{kind}.jsonl", batch.order.id),
        purpose: Purpose::BatchOutput,
        bytes: extent.bytes,
        created_at,
        expires_at: batch.order.output_expires_after.map(|seconds| created_at + seconds),
        blob: blob.to_string(),
        part_bytes,
        form,
        sealed_part_bytes,
    }
}
