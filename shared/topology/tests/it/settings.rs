//! What a process takes over from its pipeline, and what it is refused for.

use baton_topology::{Plan, Refused, Settings, Standing, StoreUrl, Told};
use proptest::prelude::*;

const FILE: &str = r#"
root = "rt"
lanes = ["fast", "slow"]
broker.url = "nats://10.0.0.1:4222"
broker.replicas = 3
store.url = "s3://kv/baton/"
models.a.source = "sim"
models.a.sim.layers = 4
models.b.source = "/models/b.gguf"
default_model = "a"
results.keep = "30d"
limits.tenant_backlog = 100
stages.decode.slots = 99
gateway.keys_file = "/etc/keys.toml"
tenants.acme.weight = 3
"#;

fn told(file: Option<&str>, overrides: &[&str]) -> Told {
    let overrides = overrides.iter().map(ToString::to_string).collect();
    Told { file: file.map(str::to_owned), overrides, ..Told::default() }
}

fn plan(file: &str) -> Plan {
    Plan::load(Some(file), [], &[]).unwrap()
}

/// As they are read back from the broker.
fn kept() -> Settings {
    let written = serde_json::to_string(&Settings::of(&plan(FILE), "p1".into())).unwrap();
    serde_json::from_str(&written).unwrap()
}

const URL: &str = "broker.url=nats://10.0.0.2:4222";

#[test]
fn a_process_that_is_told_the_broker_only_has_the_pipelines_settings_and_its_own_machines() {
    let adopted = told(None, &["root=rt", URL, "stages.decode.slots=7"]).adopt(&kept()).unwrap();
    let whole = plan(FILE);
    assert_eq!((&adopted.store, &adopted.results, &adopted.limits), (&whole.store, &whole.results, &whole.limits));
    assert_eq!((&adopted.models, &adopted.tenants, &adopted.lanes), (&whole.models, &whole.tenants, &whole.lanes));
    assert_eq!((adopted.broker.replicas, adopted.broker.url.as_str()), (3, "nats://10.0.0.2:4222"));
    // What is a machine's own is not the pipeline's.
    assert_eq!((adopted.stages.decode.compute.stage.slots, adopted.gateway.keys_file), (7, None));
}

#[test]
fn what_was_told_otherwise_is_refused_by_key_with_both_values_and_defaults_are_not() {
    let refused = |file: Option<&str>, overrides: &[&str]| match told(file, overrides).adopt(&kept()).unwrap_err() {
        Refused::Differs { differences, .. } => differences.iter().map(ToString::to_string).collect::<Vec<_>>(),
        other => panic!("{other}"),
    };
    assert_eq!(
        refused(None, &["root=rt", URL, "results.keep=7d", "store.url=s3://kv/other"]),
        [
            "results.keep: the pipeline has \"30days\", wanted \"7days\"",
            "store.url: the pipeline has \"s3://kv/baton\", wanted \"s3://kv/other\"",
        ]
    );
    // The default value said aloud is a value like any other.
    assert_eq!(
        refused(Some("broker.replicas = 1"), &["root=rt", URL])[0],
        "broker.replicas: the pipeline has 3, wanted 1"
    );
    let others = refused(Some("models.a.source = \"hf:owner/name\"\nmodels.c.source = \"sim\""), &["root=rt", URL]);
    assert!(others.iter().any(|line| line == "models.a.source: the pipeline has \"sim\", wanted \"hf:owner/name\""));
    assert!(
        others.iter().any(|line| line == "models.c.source: the pipeline has nothing, wanted \"sim\""),
        "{others:?}"
    );
    let error = told(None, &["root=rt", URL, "results.keep=7d"]).adopt(&kept()).unwrap_err().to_string();
    assert!(error.contains("baton provision") && error.contains("root rt"), "{error}");
}

#[test]
fn what_means_the_same_is_no_difference() {
    let same = ["root=rt", URL, "results.keep=720h", "lanes=fast,slow", "store.url=s3://kv/baton"];
    told(None, &same).adopt(&kept()).unwrap();
    told(Some(FILE), &[]).adopt(&kept()).unwrap();
    // A model lies elsewhere on another machine, and a sim model is as fast as its machine.
    let machine = ["root=rt", URL, "models.b.source=/mnt/b.gguf", "models.a.sim.decode_s_per_step=0.5"];
    let adopted = told(None, &machine).adopt(&kept()).unwrap();
    assert!(adopted.to_toml().contains("/mnt/b.gguf"));
    // The embedded store is the one that the pipeline has.
    let embedded = told(Some("store.url = \"embedded\""), &["root=rt", URL]).adopt(&kept()).unwrap();
    assert_eq!(embedded.store.url, StoreUrl::Url("s3://kv/baton".into()));
}

#[test]
fn what_other_releases_keep_is_read_and_stays() {
    let mut newer = serde_json::to_value(kept()).unwrap();
    newer["note"] = "of a later release".into();
    newer["settings"]["limits"]["later"] = serde_json::json!({ "deep": null, "number": 7 });
    newer["settings"]["models"]["b"]["later"] = 1.into();
    // A release back did not know this key.
    newer["settings"]["store"].as_object_mut().unwrap().remove("codec");
    let newer: Settings = serde_json::from_value(newer).unwrap();
    told(None, &["root=rt", URL]).adopt(&newer).unwrap();
    let next = newer.changed(&plan(&FILE.replace("30d", "10d").replace("models.b.source = \"/models/b.gguf\"", "")));
    let next = serde_json::to_value(next).unwrap();
    assert_eq!((&next["note"], &next["pipeline"]), (&"of a later release".into(), &"p1".into()));
    assert_eq!(next["settings"]["limits"]["later"]["number"], 7);
    assert_eq!(next["settings"]["results"]["keep"], "10days");
    assert_eq!(next["settings"]["models"].as_object().unwrap().len(), 1, "{next}");

    let mut unreadable = serde_json::to_value(kept()).unwrap();
    unreadable["format"] = 2.into();
    let unreadable: Settings = serde_json::from_value(unreadable).unwrap();
    assert_eq!(told(None, &["root=rt"]).adopt(&unreadable).unwrap_err(), Refused::Format { found: 2 });
}

#[test]
fn a_change_by_flags_leaves_the_rest_and_one_by_file_says_everything() {
    let changed = told(None, &["root=rt", URL, "results.keep=10d"]).change(&kept()).unwrap();
    let keys: Vec<_> = kept().differences(&changed).into_iter().map(|it| it.key).collect();
    assert_eq!(keys, ["results.keep"]);
    let changed = told(Some("root = \"rt\"\nmodels.a.source = \"sim\""), &[URL]).change(&kept()).unwrap();
    assert_eq!((changed.limits.tenant_backlog, changed.models.len(), changed.broker.replicas), (None, 1, 1));
    // Models are named all together.
    let changed = told(None, &["root=rt", URL, "models.c.source=sim"]).change(&kept()).unwrap();
    assert_eq!(changed.models.len(), 1);
}

#[test]
fn a_pipeline_of_a_release_that_kept_no_settings_is_known_by_its_streams() {
    let keep = std::time::Duration::from_secs(86_400);
    let standing = Standing { replicas: 3, results: Some(keep), backlog_messages: Some(5), tenant_backlog: None };
    let standing = Settings::standing(&standing);
    let adopted = told(None, &["root=rt", URL, "models.x.source=sim", "store.url=s3://a"]).adopt(&standing).unwrap();
    assert_eq!((adopted.broker.replicas, adopted.results.keep, adopted.limits.backlog_messages), (3, keep, 5));
    let refused = told(None, &["root=rt", URL, "results.keep=7d"]).adopt(&standing).unwrap_err();
    assert!(matches!(refused, Refused::Differs { differences, .. } if differences.len() == 1));
}

#[test]
fn a_store_that_nobody_has_named_may_be_named_once() {
    let none = FILE.replace("store.url", "# store.url");
    let kept = Settings::of(&plan(&none), "p1".into());
    assert_eq!(kept.store_url(), None);
    let named = told(None, &["root=rt", URL, "store.url=s3://kv"]).adopt(&kept).unwrap();
    let kept = kept.with_store(&named);
    assert_eq!(kept.store_url().as_deref(), Some("s3://kv"));
    assert!(told(None, &["root=rt", URL, "store.url=s3://other"]).adopt(&kept).is_err());
}

#[test]
fn no_password_is_kept() {
    let broker = FILE.replace("nats://10.0.0.1", "nats://user:secret@10.0.0.1");
    assert!(!serde_json::to_string(&Settings::of(&plan(&broker), "p".into())).unwrap().contains("secret"));
    let store = FILE.replace("s3://kv", "s3://id:secret@kv");
    let error = Plan::load(Some(&store), [], &[]).unwrap_err().to_string();
    assert!(error.contains("store.url") && !error.contains("secret"), "{error}");
}

#[test]
fn the_machines_part_and_the_pipelines_part_make_the_plan() {
    let whole = plan(FILE);
    let machine = whole.machine_toml();
    assert!(machine.contains("keys_file") && !machine.contains("keep") && !machine.contains("s3://"), "{machine}");
    let joined = Told { machine: Some(machine), ..Told::default() }.adopt(&kept()).unwrap();
    assert_eq!(joined, whole);
}

proptest! {
    /// Whichever of the shared settings a pipeline has, a process that is told nothing, or all of them, has the same.
    #[test]
    fn adopting_is_faithful(
        keep in 1_u32..8_000, replicas in prop::sample::select(vec![1, 3, 5]), chunk in 1_usize..=256, backlog in 1_u32..1_000_000,
        tenant in prop::option::of(1_u32..1000), codec in prop::sample::select(vec!["lossless", "near", "balanced", "raw"]),
        prefill in 0_u32..=65_536,
    ) {
        let mut file = format!(
            "broker.url = \"nats://a:1\"\nbroker.replicas = {replicas}\nstore.url = \"file:///a b\"\nstore.codec = {codec:?}\n\
             store.chunk_tokens = {}\nresults.keep = \"{keep}h\"\nlimits.backlog_messages = {backlog}\n\
             stages.decode.prefill_tokens = {prefill}\n",
            chunk * 16,
        );
        if let Some(tenant) = tenant {
            file += &format!("limits.tenant_backlog = {tenant}\n");
        }
        let whole = plan(&file);
        let kept = Settings::of(&whole, "p".into());
        let nothing = Told { overrides: vec!["broker.url=nats://a:1".into()], ..Told::default() };
        prop_assert_eq!(&nothing.adopt(&kept).unwrap(), &whole);
        let all = Told { file: Some(file), ..Told::default() };
        prop_assert_eq!(&all.adopt(&kept).unwrap(), &whole);
        prop_assert!(kept.differences(&whole).is_empty());
    }
}
