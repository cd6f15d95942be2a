use super::*;
use crate::{
    job::{Answer, Job},
    sampling::Sampling,
};

fn outcome(samples: u32) -> Outcome {
    let name = |text| Name::new(text).unwrap();
    let job = Job {
        id: JobId::new("job-1").unwrap(),
        tenant: name("acme"),
        lane: name("batch"),
        model: name("m"),
        prompt: vec![1],
        max_tokens: 3,
        samples,
        sampling: Sampling::GREEDY,
        stop: Vec::new(),
        deadline_ms: None,
        metadata: [("k".into(), "v".into())].into(),
        request_digest: "ab".into(),
    };
    let chosen = Alternative { token: "a".into(), id: 4, logprob: -0.5, bytes: vec![b'a'] };
    let answer = Answer {
        text: "äb".into(),
        tokens: vec![4, 5],
        logprobs: vec![TokenLogprob { chosen, top_logprobs: Vec::new() }; 2],
        finish_reason: Some(FinishReason::Length),
        message: [("refusal".to_owned(), "no".into())].into_iter().collect(),
    };
    job.completed(vec![answer; samples as usize], Timings::default())
}

#[test]
fn every_large_part_can_be_left_out() {
    let mut told = outcome(2);
    let bytes = |told: &Outcome| serde_json::to_vec(told).unwrap().len();
    for part in Part::ALL {
        let before = bytes(&told);
        told.leave_out(part);
        assert!(bytes(&told) < before, "{part:?}");
    }
    let bare = Outcome { text: String::new(), metadata: BTreeMap::new(), ..outcome(1) };
    assert_eq!(told.usage.completion_tokens, 4, "what is small stays");
    assert_eq!((told.status, told.finish_reason), (bare.status, bare.finish_reason));
    assert!(told.tokens.is_empty() && told.logprobs.is_none() && told.choices.is_empty());
}

#[test]
fn what_nothing_takes_is_a_failure_with_the_beginning_of_the_text() {
    let cut = outcome(2).too_large(100, 50, 2);
    assert_eq!((cut.status, cut.text.as_str(), cut.finish_reason), (Status::Failed, "ä", None));
    let error = cut.error.unwrap();
    assert_eq!(error.code, Code::ResultTooLarge);
    assert!(error.message.contains("100 bytes") && error.message.contains("50"), "{error}");
    assert_eq!(outcome(1).too_large(100, 50, 1).text, "", "no half character");
}

#[test]
fn what_a_later_release_says_is_read() {
    assert_eq!(serde_json::from_str::<Code>("\"from_the_future\"").unwrap(), Code::Internal);
    assert_eq!(serde_json::to_string(&Code::Internal).unwrap(), "\"internal\"");
    assert_eq!(serde_json::to_string(&Code::NonFinite).unwrap(), "\"non_finite\"");
}
