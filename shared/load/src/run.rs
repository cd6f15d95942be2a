//! The run itself: sends when it is time, and notes what comes.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::{
    Error, Options, Report,
    record::{End, Record},
    report::{RequestLine, Steady},
    target::{Event, Session, Target, What},
    timeline::Timeline,
    workload::{Maker, Planned, Workload},
};

/// How far a run is, the warm-up included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Requests that were sent.
    pub sent: usize,
    /// Those of them that have ended.
    pub ended: usize,
    /// Nothing if time decides how many there will be.
    pub total: Option<usize>,
}

/// A run that has ended.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Its figures.
    pub report: Report,
    /// Every measured request, in the order of the intended send times.
    pub records: Vec<Record>,
    /// Tokens by the time at which they came.
    pub timeline: Timeline,
}

impl Measured {
    /// One line a request, in the order of the intended send times.
    pub fn lines(&self) -> impl Iterator<Item = RequestLine> {
        self.records.iter().map(RequestLine::of)
    }
}

/// Makes the load and waits until every request has ended or is lost. `progress` hears of each send and each end.
pub async fn run(target: &Target, options: &Options, progress: impl FnMut(Progress)) -> Result<Measured, Error> {
    options.check()?;
    let workload = Workload::new(options)?;
    let session = target.open(options).await?;
    let run = Run {
        options,
        maker: Maker::new(options),
        total: workload.total(),
        workload: workload.peekable(),
        start: Instant::now(),
        timeout: Duration::from_secs_f64(options.timeout_s),
        records: Vec::new(),
        oldest: 0,
        under_way: 0,
        closed: false,
        timeline: Timeline::default(),
        progress,
    };
    let (mut records, timeline) = run.until_all_ended(session).await;
    let steady = Steady::of(options, &records, &timeline);
    let records = records.split_off(options.warmup.min(records.len()));
    let report = Report::new(target.kind(), options, &records, steady);
    Ok(Measured { report, records, timeline })
}

struct Run<'a, P> {
    options: &'a Options,
    workload: std::iter::Peekable<Workload>,
    maker: Maker,
    start: Instant,
    timeout: Duration,
    /// In the order of the intended send times.
    records: Vec<Record>,
    /// No request before this one is under way.
    oldest: usize,
    under_way: usize,
    /// Whether nothing is sent any more.
    closed: bool,
    total: Option<usize>,
    timeline: Timeline,
    progress: P,
}

impl<P: FnMut(Progress)> Run<'_, P> {
    async fn until_all_ended(mut self, mut session: Session) -> (Vec<Record>, Timeline) {
        loop {
            while self.records.get(self.oldest).is_some_and(|record| record.end.is_some()) {
                self.oldest += 1;
            }
            let due = self.due();
            if due.is_none() && self.closed && self.under_way == 0 {
                break;
            }
            let (sends, due) = (due.is_some(), due.unwrap_or(self.start));
            let lost = self.records.get(self.oldest).map_or(due, |record| self.start + record.planned + self.timeout);
            tokio::select! {
                // Sending comes first: what comes in must never hold up what goes out.
                biased;
                () = sleep_until(due), if sends => self.send(&mut session, due),
                event = session.next(), if self.under_way > 0 => self.heard(event),
                () = sleep_until(lost), if self.under_way > 0 => {
                    session.forget(self.oldest);
                    self.end(self.oldest, End::Lost);
                }
            }
        }
        while let Some(event) = session.rest().await {
            self.heard(event);
        }
        (self.records, self.timeline)
    }

    /// When the next request is to be sent; nothing if it waits for another's end, or if there is none.
    fn due(&mut self) -> Option<Instant> {
        let ends = self.options.duration_s.map(Duration::from_secs_f64);
        let Some(at) = self.workload.peek().map(|next| next.at).filter(|_| !self.closed) else {
            self.closed = true;
            return None;
        };
        let at = match self.options.concurrency {
            Some(concurrency) if self.under_way >= concurrency => return None,
            Some(_) => self.start.elapsed(),
            None => at,
        };
        if ends.is_some_and(|ends| at > ends) {
            self.closed = true;
            return None;
        }
        Some(self.start + at)
    }

    /// Sends the next request, which was due then; nobody waits until the target has it.
    fn send(&mut self, session: &mut Session, due: Instant) {
        let Some(planned): Option<Planned> = self.workload.next() else { return };
        let index = self.records.len();
        self.records.push(Record::new(due.saturating_duration_since(self.start)));
        self.under_way += 1;
        session.send(index, planned, &self.maker);
        self.tell();
    }

    fn heard(&mut self, Event { index, at, what }: Event) {
        let at = at.saturating_duration_since(self.start);
        let Some(record) = self.records.get_mut(index) else { return };
        let end = match what {
            What::Sent => {
                record.sent = Some(at);
                return;
            }
            What::Token { position } => {
                if record.end.is_none() && record.token(position, at) {
                    self.timeline.token(at);
                }
                return;
            }
            What::Completed { prompt_tokens, output_tokens, cached_tokens, stages } => {
                End::Completed { at, prompt_tokens, output_tokens, cached_tokens, stages }
            }
            What::Failed { kind, message } => End::Failed { at, kind, message },
        };
        self.end(index, end);
    }

    fn end(&mut self, index: usize, end: End) {
        if self.records.get_mut(index).is_some_and(|record| record.finish(end)) {
            self.under_way -= 1;
            self.tell();
        }
    }

    fn tell(&mut self) {
        let sent = self.records.len();
        let total = if self.closed { Some(sent) } else { self.total };
        (self.progress)(Progress { sent, ended: sent - self.under_way, total });
    }
}
