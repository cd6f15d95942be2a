use super::*;

#[test]
fn any_worker_name_is_one_token_of_a_subject() {
    let layout = Layout::new(Name::new("baton").unwrap());
    for (name, token) in [("decode-1", "decode-1"), ("a.b c>*", "a_b_c__"), ("", "_"), ("gpu\u{e9}", "gpu_")] {
        assert_eq!(layout.stats(Stage::Decode, name), format!("baton.stats.decode.{token}"));
    }
    assert_eq!(layout.stats(Stage::Ingest, &"x".repeat(999)).len(), "baton.stats.ingest.".len() + 64);
}

#[test]
fn a_queue_is_read_from_the_subjects_of_messages_and_consumers() {
    let layout = Layout::new(Name::new("baton").unwrap());
    let (model, lane) = (Name::new("sim").unwrap(), Name::new("batch").unwrap());
    let decode = layout.decode(&model, &lane, &Name::new("acme").unwrap());
    assert_eq!(layout.parse_queue(Stage::Decode, &decode), Some((Some(model), lane.clone())));
    assert_eq!(layout.parse_queue(Stage::Ingest, "baton.req.*.batch"), Some((None, lane)));
    assert_eq!(layout.parse_queue(Stage::Prefill, &decode), None);
    assert_eq!(layout.parse_queue(Stage::Decode, "baton.decode.sim.batch"), None);
    assert_eq!(layout.parse_queue(Stage::Decode, "baton.decode.sim.batch.acme.x"), None);
}

#[test]
fn the_lanes_of_the_request_stream_are_read_back() {
    let layout = Layout::new(Name::new("baton").unwrap());
    let lanes = ["interactive", "batch"].map(|lane| Name::new(lane).unwrap());
    let subjects = layout.request_subjects(&lanes);
    assert_eq!(layout.parse_request_subjects(subjects.iter().map(String::as_str)), Some(lanes.to_vec()));
    assert_eq!(layout.parse_request_subjects(["baton.req.*.batch", "baton.req.*.*"]), None);
    assert_eq!(layout.parse_request_subjects(["other.req.*.batch"]), None);
}

#[test]
fn request_subjects_are_read_back_and_others_are_not() {
    let layout = Layout::new(Name::new("baton").unwrap());
    let (tenant, lane) = (Name::new("acme").unwrap(), Name::new("batch").unwrap());
    assert_eq!(layout.parse_request(&layout.request(&tenant, &lane)), Some((tenant, lane)));
    for bad in ["baton.req.acme", "baton.req.acme.batch.x", "other.req.acme.batch", "batonx.req.a.b", "baton.req.A.b"] {
        assert_eq!(layout.parse_request(bad), None, "{bad}");
    }
}

/// Releases and clients in other languages rely on each of them.
#[test]
fn subjects_and_streams_are_spelled_so() {
    let layout = Layout::new(Name::new("baton").unwrap());
    let name = |text| Name::new(text).unwrap();
    let (tenant, model, lane, job) = (name("acme"), name("sim"), name("batch"), JobId::new("Run-7").unwrap());
    let spelled = [
        (layout.request(&tenant, &lane), "baton.req.acme.batch"),
        (layout.requests(&tenant), "baton.req.acme.*"),
        (layout.prefill(&model, &lane, &tenant), "baton.prefill.sim.batch.acme"),
        (layout.decode(&model, &lane, &tenant), "baton.decode.sim.batch.acme"),
        (layout.waiting(&model, &lane, &tenant), "baton.waiting.sim.batch.acme"),
        (layout.waiting_stream(), "baton_waiting"),
        (layout.waiting_subjects(), "baton.waiting.*.*.*"),
        (layout.wake(), "baton.wake"),
        (layout.tokens(&tenant, &job), "baton.tok.acme.Run-7"),
        (layout.all_tokens(&tenant), "baton.tok.acme.*"),
        (layout.result(&tenant, &job), "baton.res.acme.Run-7"),
        (layout.results(&tenant), "baton.res.acme.*"),
        (layout.all_results(), "baton.res.*.*"),
        (layout.refusal(&tenant, &job, "0f"), "baton.rej.acme.Run-7.0f"),
        (layout.refusals(&tenant), "baton.rej.acme.*.*"),
        (layout.cancel(&tenant, &job), "baton.api.cancel.acme.Run-7"),
        (layout.cancels(), "baton.api.cancel.*.*"),
        (layout.cancelled(&tenant, &job), "baton.cancel.acme.Run-7"),
        (layout.all_cancelled(), "baton.cancel.*.*"),
        (layout.role("decode-1"), "baton.api.role.decode-1"),
        (layout.stats(Stage::Decode, "decode-1"), "baton.stats.decode.decode-1"),
        (layout.planning(), "baton.stats.planner"),
        (layout.all_stats(), "baton.stats.*.*"),
        (layout.queue(Stage::Ingest, None, &lane), "baton.req.*.batch"),
        (layout.queue(Stage::Prefill, Some(&model), &lane), "baton.prefill.sim.batch.*"),
        (layout.queue(Stage::Decode, Some(&model), &lane), "baton.decode.sim.batch.*"),
        (Layout::queue_consumer(None, &lane), "batch"),
        (Layout::queue_consumer(Some(&model), &lane), "sim-batch"),
        (layout.dead_letter("prefill.acme.Run-7"), "baton.dead.prefill.acme.Run-7"),
        (layout.admitted(&tenant, &job), "baton.admitted.acme.Run-7"),
        (layout.stage_stream(Stage::Ingest), "baton_req"),
        (layout.stage_stream(Stage::Prefill), "baton_prefill"),
        (layout.stage_stream(Stage::Decode), "baton_decode"),
        (layout.request_subjects(std::slice::from_ref(&lane)).join(" "), "baton.req.*.batch"),
        (layout.stage_subjects(Stage::Ingest), "baton.req.*.*"),
        (layout.stage_subjects(Stage::Prefill), "baton.prefill.*.*.*"),
        (layout.stage_subjects(Stage::Decode), "baton.decode.*.*.*"),
        (layout.result_stream(), "baton_res"),
        (layout.result_subjects().join(" "), "baton.res.*.* baton.rej.*.*.*"),
        (layout.dead_stream(), "baton_dead"),
        (layout.dead_subjects(), "baton.dead.>"),
        (layout.admitted_stream(), "baton_admitted"),
        (layout.admitted_subjects(), "baton.admitted.*.*"),
        (layout.job_bucket(), "baton_jobs"),
        (layout.checkpoint_bucket(), "baton_checkpoints"),
        (layout.settings_bucket(), "baton_settings"),
        (layout.large_bucket(), "baton_results"),
        (layout.large_stream(), "OBJ_baton_results"),
        (layout.large_subjects().join(" "), "$O.baton_results.C.> $O.baton_results.M.>"),
        (layout.prefix_bucket(), "baton_prefixes"),
        (layout.file_bucket(), "baton_files"),
        (layout.batch_bucket(), "baton_batches"),
        (layout.errand("batch", &tenant), "baton.batch.acme"),
        (layout.errands("webhook"), "baton.webhook.*"),
        (layout.batch_task_stream(), "baton_batchwork"),
        (layout.webhook_task_stream(), "baton_webhooks"),
        (layout.service(), "baton-baton"),
        (layout.worker_service(), "baton-baton-worker"),
        (layout.job_key(&tenant, &job), "acme.Run-7"),
    ];
    for (found, expected) in spelled {
        assert_eq!(found, expected);
    }
}

#[test]
fn the_brokers_own_subjects_are_spelled_so() {
    let spelled = [
        (broker::bucket_stream("baton_jobs"), "KV_baton_jobs"),
        (broker::bucket_prefix("baton_jobs"), "$KV.baton_jobs."),
        (broker::bucket_subjects("baton_jobs"), "$KV.baton_jobs.>"),
        (broker::stream_info("baton_req"), "STREAM.INFO.baton_req"),
        (broker::consumer_info("baton_decode", "sim-batch"), "CONSUMER.INFO.baton_decode.sim-batch"),
        (broker::message_get("baton_req"), "STREAM.MSG.GET.baton_req"),
        (broker::message_delete("baton_waiting"), "STREAM.MSG.DELETE.baton_waiting"),
        (broker::next_message("baton_decode", "sim-batch"), "$JS.API.CONSUMER.MSG.NEXT.baton_decode.sim-batch"),
        (broker::direct_get("baton_waiting"), "$JS.API.DIRECT.GET.baton_waiting"),
        (broker::ping("baton-baton"), "$SRV.PING.baton-baton"),
    ];
    for (found, expected) in spelled {
        assert_eq!(found, expected);
    }
}
