//! Pipelines in, plans or complete lists of mistakes out.

use baton_topology::{BrokerUrl, Bytes, Compute, Device, Hub, Model, Plan, Roles, StoreUrl};
use proptest::prelude::*;

const LOCAL: &str = include_str!("../../../../pipelines/local.toml");
const BALANCED: &str = include_str!("../../../../pipelines/balanced.toml");
const GENERATION_HEAVY: &str = include_str!("../../../../pipelines/generation-heavy.toml");
const PROMPT_HEAVY: &str = include_str!("../../../../pipelines/prompt-heavy.toml");
const MIXED_HARDWARE: &str = include_str!("../../../../pipelines/mixed-hardware.toml");
const ADAPTIVE: &str = include_str!("../../../../pipelines/adaptive.toml");
const TWO_MODELS: &str = include_str!("../../../../pipelines/two-models.toml");

fn load(file: &str) -> Plan {
    Plan::load(Some(file), [], &[]).unwrap()
}

fn problems(file: &str, environment: &[(&str, &str)], overrides: &[&str]) -> String {
    let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let overrides: Vec<String> = overrides.iter().map(|entry| entry.to_string()).collect();
    Plan::load(Some(file), environment, &overrides).unwrap_err().to_string()
}

#[test]
fn the_shipped_pipelines_hold_and_local_writes_out_the_defaults() {
    assert_eq!(load(LOCAL), Plan::load(None, [], &[]).unwrap());
    for (file, prefill, decode) in [(GENERATION_HEAVY, 2, 4), (BALANCED, 3, 3), (PROMPT_HEAVY, 4, 2)] {
        let stages = load(file).stages;
        let replicas = |compute: &Compute| compute.stage.replicas;
        assert_eq!((stages.ingest.replicas, replicas(&stages.prefill.compute)), (1, prefill));
        assert_eq!(replicas(&stages.decode.compute), decode);
    }
    let stages = load(MIXED_HARDWARE).stages;
    assert_eq!((stages.prefill.compute.device, stages.decode.compute.device), (Device::Cuda, Device::Flex));
    let planner = load(ADAPTIVE).planner;
    assert_eq!((planner.enabled, planner.roles), (true, Roles::Flexible));
    let plan = load(TWO_MODELS);
    assert_eq!((plan.models.len(), plan.default_model.as_str()), (2, "small"));
    assert_eq!(plan.stages.decode.compute.models.len(), 2);
}

#[test]
fn a_plan_states_everything() {
    insta::assert_snapshot!(load(BALANCED).to_toml(), @r#"
    root = "baton"
    default_model = "smollm2-135m"
    lanes = ["interactive", "batch"]
    compute = "fast"

    [broker]
    url = "embedded"
    replicas = 1

    [store]
    url = "embedded"
    codec = "lossless"
    chunk_tokens = 256
    sync = "never"
    max_age = "7days"
    gc_interval = "1h"

    [models.smollm2-135m]
    source = "default"

    [stages.ingest]
    replicas = 1
    slots = 64
    ack_wait = "30s"
    max_deliver = 5

    [stages.prefill]
    replicas = 3
    slots = 8
    ack_wait = "30s"
    max_deliver = 5
    models = ["smollm2-135m"]
    device = "flex"
    threads = 1
    memory_fraction = 0.1
    batch_tokens = 512

    [stages.decode]
    replicas = 3
    slots = 16
    ack_wait = "30s"
    max_deliver = 5
    models = ["smollm2-135m"]
    device = "flex"
    threads = 1
    memory_fraction = 0.1
    prefill_tokens = 0
    checkpoint_ms = 250

    [gateway]
    replicas = 1
    listen = "127.0.0.1:8080"
    open = false
    max_connections = 4096
    body_memory = "256MiB"
    batches = 4
    ack_wait = "30s"
    max_output = "16GiB"

    [planner]
    enabled = false
    roles = "fixed"
    interval = "1s"
    drain = "1s"

    [planner.prefill]
    floor = 1
    ceiling = 1024

    [planner.decode]
    floor = 1
    ceiling = 1024

    [limits]
    backlog_messages = 1000000

    [results]
    keep = "7days"

    [telemetry]
    log = "info"
    log_format = "text"
    "#);
}

#[test]
fn flags_win_over_the_environment_which_wins_over_the_file() {
    let file = "[stages.decode]\nslots = 3\n[stages.prefill]\nslots = 3\n[stages.ingest]\nslots = 3";
    let environment = [
        ("BATON__STAGES__DECODE__SLOTS", "4"),
        ("BATON__STAGES__PREFILL__SLOTS", "4"),
        ("BATON__LANES", "bulk, fast"),
        ("BATON_HOME", "/not/ours"),
        ("BATON__MODELS__TINY__SOURCE", "sim"),
        ("BATON__MODELS__TINY__SIM__DECODE_S_PER_STEP", "0.5"),
        ("BATON__ROOT", "42"),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let overrides = ["stages.decode.slots=5", "broker.url=nats://a:1,tls://b:2", "store.url=s3://bucket/kv"];
    let plan = Plan::load(Some(file), environment, &overrides.map(str::to_owned)).unwrap();
    let stages = &plan.stages;
    assert_eq!((stages.ingest.slots, stages.prefill.compute.stage.slots, stages.decode.compute.stage.slots), (3, 4, 5));
    assert_eq!(plan.lanes.iter().map(|lane| lane.as_str()).collect::<Vec<_>>(), ["bulk", "fast"]);
    assert_eq!(plan.root.as_str(), "42");
    assert_eq!(plan.broker.url, BrokerUrl::Servers("nats://a:1,tls://b:2".into()));
    assert_eq!(plan.store.url, StoreUrl::Url("s3://bucket/kv".into()));
    // The pipeline names a model, so the default one is not there.
    assert_eq!((plan.default_model.as_str(), plan.models.len()), ("tiny", 1));
    assert!(matches!(plan.models.values().next(), Some(Model::Sim(sim)) if sim.decode_s_per_step == 0.5));
}

#[test]
fn workers_of_both_roles_need_stages_that_are_alike_and_bounds_that_hold() {
    let file =
        "[planner]\nroles = \"flexible\"\n[planner.decode]\nfloor = 3\nceiling = 2\n[stages.decode]\nthreads = 3";
    insta::assert_snapshot!(problems(file, &[], &[]), @r#"
    the pipeline has 2 problems:
      planner.roles: a worker of both roles loads its models once, so stages.prefill and stages.decode need the same threads
      planner.decode.floor: expected at most ceiling, 2, found 3
    "#);
}

#[test]
fn tenants_have_shares_and_limits() {
    let file = "[limits]\ntenant_backlog = 100\n[tenants.acme]\nweight = 3\n[tenants.other]\nmax_running = 5";
    let plan = Plan::load(Some(file), [], &["tenants.acme.max_running=7".to_owned()]).unwrap();
    let share = |tenant: &str| plan.tenants.iter().find(|(name, _)| name.as_str() == tenant).map(|(_, share)| share);
    let shares = ["acme", "other", "nobody"].map(|tenant| share(tenant).map(|it| (it.weight, it.max_running)));
    assert_eq!(shares, [Some((3, Some(7))), Some((1, Some(5))), None]);
    assert_eq!(plan.limits.tenant_backlog, Some(100));
    assert_eq!(Plan::load(Some(&plan.to_toml()), [], &[]).unwrap(), plan);
    let file = "[limits]\ntenant_backlog = 0\n[tenants.\"A b\"]\n[tenants.b]\nweight = 0\nmax_running = 0\nwaight = 1";
    insta::assert_snapshot!(problems(file, &[], &[]), @r#"
    the pipeline has 5 problems:
      limits.tenant_backlog: expected an integer from 1 to 1000000000, found 0
      tenants.A b: the tenant's name: expected 1 to 64 of a-z, 0-9, _ and -, found "A b"
      tenants.b.weight: expected an integer from 1 to 100, found 0
      tenants.b.max_running: expected an integer from 1 to 1000000000, found 0
      tenants.b.waight: unknown key; did you mean "weight"?
    "#);
}

#[test]
fn all_mistakes_are_listed_with_their_keys() {
    let file = r#"
        root = "Baton.1"
        lanes = ["a", "a", "b c"]
        retries = 3
        compute = "faster"
        [broker]
        url = "http://localhost:4222"
        replica = 3
        [store]
        url = "s3://"
        codec = "zip"
        chunk_tokens = 100
        key_file = ""
        cache_memory = "some"
        cache_path = "/var/cache/baton"
        max_age = "1m"
        max_bytes = 0
        gc_interval = "often"
        [models.one]
        source = "model.bin"
        [models.two]
        source = "default"
        sim = { layers = 3 }
        [models.three]
        source = "sim"
        [models.three.sim]
        answer_tokens = { min = 9, max = 3 }
        prefill_s_per_token = -1
        [stages]
        decode = 3
        [stages.ingest]
        device = "cuda"
        [stages.prefill]
        replicas = "two"
        ack_wait = "1ms"
        models = ["tow"]
        device = "cuda"
        memory_fraction = 0
        batch_tokens = 1
        [results]
        keep = 7
    "#;
    let environment = [("BATON__STAGES__PREFILL__THREADS", "many")];
    insta::assert_snapshot!(problems(file, &environment, &["stages.prefill.slot=3", "results.keep=always"]), @r#"
    the pipeline has 32 problems:
      root: expected 1 to 64 of a-z, 0-9, _ and -, found "Baton.1"
      lanes: "a" is there twice
      lanes: expected 1 to 64 of a-z, 0-9, _ and -, found "b c"
      compute: expected "fast" or "exact", found "faster"
      broker.url: expected "embedded" or nats:// or tls:// URLs separated by commas, found "http://localhost:4222"
      broker.replica: unknown key; did you mean "replicas"?
      store.url: expected "embedded", file:///directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix, found "s3://"
      store.codec: expected "lossless" or "near" or "balanced" or "raw", found "zip"
      store.chunk_tokens: expected a multiple of 16, found 100
      store.key_file: expected the path of a file, found ""
      store.cache_memory: expected a size from 1MiB to 1024TiB such as "2GiB", found "some"
      store.cache_disk: expected the bytes that cache_path may hold, such as "20GiB"
      store.max_age: expected a duration from 1h to 1year such as "90s", found "1m"
      store.max_bytes: expected a size from 1MiB to 1024TiB such as "2GiB", found 0
      store.gc_interval: expected a duration from 1m to 1year such as "90s", found "often"
      models.one.source: expected "default", "sim", "openai", the path of a .gguf file, the path of a folder with a slash in it, or hf:owner/name, perhaps with @revision and /file.gguf, found "model.bin"
      models.three.sim.prefill_s_per_token: expected a number from 0 to 3600, found -1
      models.three.sim.answer_tokens.min: expected at most max, 3, found 9
      models.two.sim: only a model whose source is "sim" has this table
      default_model: expected the name of one of the 3 models, found nothing
      stages.ingest.device: unknown key
      stages.prefill.replicas: expected an integer from 0 to 1024, found "two"
      stages.prefill.ack_wait: expected a duration from 1s to 1h such as "90s", found "1ms"
      stages.prefill.models: no model is named "tow"; did you mean "two"?
      stages.prefill.threads: expected an integer from 0 to 1024, found "many" (set by BATON__STAGES__PREFILL__THREADS)
      stages.prefill.memory_fraction: expected a number above 0 and at most 1, found 0
      stages.prefill.kv_memory: expected a size such as "8GiB", for the device's memory is not the machine's; found nothing
      stages.prefill.batch_tokens: expected an integer from 16 to 65536, found 1
      stages.prefill.slot: unknown key; did you mean "slots"? (set on the command line)
      stages.decode: expected a table, found 3
      results.keep: expected a duration from 1h to 1year such as "90s", found "always" (set on the command line)
      retries: unknown key
    "#);
}

#[test]
fn what_cannot_be_layered_is_refused_before_anything_else() {
    insta::assert_snapshot!(problems("root = \"a\"\nlanes = [", &[], &[]), @r#"
    the pipeline has a problem:
      line 2, column 10: the file is no valid TOML: unclosed array, expected `]`
    "#);
    insta::assert_snapshot!(problems("", &[("BATON__", "1"), ("BATON__STAGES", "2"), ("BATON__ROOT__X", "3")], &["slots"]), @r#"
    the pipeline has 4 problems:
      BATON__: expected the key of a setting, as in stages.decode.slots
      BATON__ROOT__X: "root" in root.x is a value, it has no keys of its own
      BATON__STAGES: stages is a table, set one of its keys
      slots: expected key=value, as in stages.decode.slots=8
    "#);
}

proptest! {
    /// What `baton up` hands to its workers is the plan it has itself.
    #[test]
    fn a_plan_survives_its_own_text(
        slots in 1usize..4096, seconds in 1u64..3600, sim in any::<bool>(), embedded in any::<bool>(),
        seconds_per_token in 0.0f64..60.0, path in "[a-zA-Z0-9 \"'\\\\/é]{0,20}", log in "[ -~é]{1,20}",
    ) {
        let mut plan = load(LOCAL);
        plan.stages.decode.compute.stage.slots = slots;
        plan.stages.ingest.ack_wait = std::time::Duration::from_secs(seconds);
        plan.telemetry.log = format!("x{log}");
        plan.telemetry.otlp_endpoint = sim.then(|| "https://collector:4317".into());
        plan.broker.credentials = sim.then(|| format!("/{path}"));
        if !embedded {
            plan.store.url = StoreUrl::Url("file:///tmp/kv".into());
            plan.broker.url = BrokerUrl::Servers("nats://127.0.0.1:4222".into());
        }
        *plan.models.values_mut().next().unwrap() = if sim {
            Model::Sim(baton_topology::Sim {
                prefill_s_per_token: seconds_per_token,
                answer_tokens: embedded.then_some(baton_topology::AnswerTokens { min: 1, max: slots as u32 }),
                ..Default::default()
            })
        } else if embedded {
            Model::Hub(Hub::parse(&format!("hf:owner/name@v{slots}")).expect("a plain name"))
        } else {
            Model::File(format!("{path}.gguf"))
        };
        plan.stages.decode.compute.memory_fraction = f64::from(slots as u32) / 4096.0;
        plan.stages.prefill.compute.kv_memory = embedded.then(|| Bytes::parse(&format!("{}KiB", 1024 * seconds + 1)).unwrap());
        prop_assert_eq!(&load(&plan.to_toml()), &plan);
    }

    /// Whatever a file, a variable or an override says, there is a plan or a list, and no panic.
    #[test]
    fn any_text_gives_a_plan_or_a_list(
        key in prop::sample::select(vec!["root", "lanes", "models", "models.a.sim.layers", "stages", "stages.decode.slots",
            "stages.prefill.ack_wait", "store.chunk_tokens", "store", "telemetry.log", "broker.replicas", "x.y"]),
        value in prop::sample::select(vec!["3", "-1", "1e99", "99999999999999999999", "\"a\"", "[]", "[[1]]", "{}", "{a=1}",
            "true", "nan", "\"99999999999999999y\"", "2026-01-01"]),
        text in ".{0,12}",
    ) {
        let file = format!("{key} = {value}");
        for result in [
            Plan::load(Some(&file), [], &[]),
            Plan::load(Some(&text), [], &[]),
            Plan::load(None, [(format!("BATON__{}", key.replace('.', "__")), text.clone())], &[]),
            Plan::load(None, [], &[format!("{key}={value}"), format!("{key}={text}")]),
        ] {
            if let Err(errors) = result {
                prop_assert!(!errors.0.is_empty());
            }
        }
    }
}

#[test]
fn a_gateways_mistakes_are_told() {
    let file = "[gateway]\nreplicas = 2\nlisten = \"localhost\"\nopen = \"yes\"\nmax_output = \"5 files\"\nwebhook_allow = [\"10.0.0.0/33\"]\n\
                hosts = [\"a:80\"]\ncors_origins = [\"https://a.example/path\"]\nbody_memory = \"1MiB\"";
    let problems = problems(file, &[], &[]);
    for expected in [
        "gateway.replicas: expected an integer from 0 to 1, found 2",
        "gateway.listen: expected an address and a port such as \"127.0.0.1:8080\", found \"localhost\"",
        "gateway.open: expected true or false, found \"yes\"",
        "gateway.max_output: expected a size from 1MiB to 1024TiB such as \"2GiB\", found \"5 files\"",
        "gateway.webhook_allow: expected a list of ranges of addresses",
        "gateway.hosts: expected a list of hosts without ports",
        "gateway.cors_origins: expected a list of origins such as",
        "gateway.body_memory: expected at least 16MiB",
    ] {
        assert!(problems.contains(expected), "{expected}\n{problems}");
    }
    let overrides = [
        "gateway.open=true",
        "gateway.listen=[::1]:0",
        "gateway.webhook_allow=10.0.0.0/8,::1",
        "gateway.hosts=gpu-1,10.0.0.1",
        "gateway.cors_origins=https://a.example,http://[::1]:3000",
    ];
    let plan = Plan::load(None, [], &overrides.map(str::to_owned)).unwrap();
    assert!(plan.gateway.open && plan.gateway.listen.port() == 0);
    assert_eq!(plan.gateway.webhook_allow, ["10.0.0.0/8", "::1"]);
    assert_eq!(plan.gateway.hosts, ["gpu-1", "10.0.0.1"]);
    assert_eq!(plan.gateway.cors_origins, ["https://a.example", "http://[::1]:3000"]);
}
