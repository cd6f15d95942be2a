//! Whether the disks of this machine that a pipeline writes to have room. The broker says of a full disk only that it can't
//! store, and goes on saying so until it is restarted.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use baton_storage::store;
use baton_topology::{Plan, StoreUrl};
use indicatif::BinaryBytes;
use tokio::time::interval;

/// Less than this is too little for a broker and a store that grow.
const LITTLE: u64 = 512 << 20;
/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(10);

/// Where a plan's store lies, if that is a directory of this machine.
pub fn of_store(plan: &Plan) -> Option<PathBuf> {
    let StoreUrl::Url(url) = &plan.store.url else { return None };
    let path = PathBuf::from(url.strip_prefix("file://").unwrap_or(url));
    path.is_dir().then_some(path)
}

/// What is wrong, if there is little room in one of some directories.
pub fn shortage<P: AsRef<Path>>(places: impl IntoIterator<Item = P>) -> Option<String> {
    places.into_iter().find_map(|place| short(place.as_ref(), store::free(place.as_ref())?))
}

fn short(place: &Path, free: u64) -> Option<String> {
    let told = || {
        format!(
            "the disk is nearly full: {} are free in {}; make room there (`baton kv gc --max-bytes` removes chunks)",
            BinaryBytes(free),
            place.display()
        )
    };
    (free < LITTLE).then(told)
}

/// Warns when room gets short, and when there is enough again.
pub async fn watch(places: Vec<PathBuf>) {
    let (mut ticks, mut was_short) = (interval(EVERY), false);
    loop {
        ticks.tick().await;
        match shortage(&places) {
            Some(problem) if !was_short => tracing::warn!("{problem}"),
            None if was_short => tracing::info!("the disk has room again; restart a broker that stores nothing since"),
            _ => continue,
        }
        was_short = !was_short;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_tells_how_much_is_free_and_where() {
        let place = Path::new("/var/lib/baton");
        assert_eq!(short(place, LITTLE), None);
        let told = short(place, 3 << 20).unwrap();
        assert!(told.contains("3.00 MiB") && told.contains("/var/lib/baton"), "{told}");
        assert_eq!(shortage(["/nowhere/at/all"]), None, "what is not there is not short of room");
    }
}
