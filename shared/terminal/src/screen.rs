//! A pipeline's figures on the whole terminal, until a key ends it.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal},
    time::Duration,
};

use baton_contract::{
    stats::{
        Upstream,
        view::{StageView, View},
    },
    subject::Stage,
};
use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Paragraph, Row, Sparkline, Table, Wrap},
};
use tokio::{sync::mpsc, task::spawn_blocking};

use crate::figures;

/// Seconds of history.
const HISTORY: usize = 240;
/// Queues of a stage that are shown.
const QUEUES: usize = 4;
/// Lines for workers, at least.
const WORKERS: u16 = 4;
/// Instances of foreign engines that are shown.
const ENGINES: usize = 6;
/// How long the keyboard is waited for at a time.
const KEYS: Duration = Duration::from_millis(200);
/// A broker that has not answered for this long is told of.
const SILENT_MS: u64 = 3_000;

/// What is on the screen.
struct Screen {
    title: String,
    view: Option<View>,
    /// What each stage did in each second, the latest last.
    history: [VecDeque<u64>; 3],
    /// The first worker that is shown.
    first: usize,
    colours: bool,
    /// Tells the time in milliseconds since 1970.
    now_ms: fn() -> u64,
}

/// Why there is no screen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Standard input is no terminal.
    #[error("the screen needs a keyboard: use --once or --json without one")]
    NoKeyboard,
    /// The terminal can't be switched.
    #[error("cannot take over the terminal")]
    Take(#[source] io::Error),
    /// The terminal can't be written.
    #[error("cannot draw the screen")]
    Draw(#[source] io::Error),
}

/// Gives the terminal back.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Shows what `look` brings until a key ends it; `now_ms` tells the time in milliseconds since 1970. May be dropped at any time, as `look` must allow, too.
pub async fn run(look: impl AsyncFnMut() -> View, title: &str, now_ms: fn() -> u64) -> Result<(), Error> {
    if !io::stdin().is_terminal() {
        return Err(Error::NoKeyboard);
    }
    let mut terminal = ratatui::try_init().map_err(Error::Take)?;
    let _restore = Restore;
    let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let screen = Screen { title: title.to_owned(), view: None, history: Default::default(), first: 0, colours, now_ms };
    screen.show(look, &mut terminal).await
}

/// Keys as they are pressed, until nobody listens.
fn keys() -> mpsc::Receiver<KeyEvent> {
    let (sender, keys) = mpsc::channel(16);
    spawn_blocking(move || {
        while !sender.is_closed() {
            // A keyboard that can't be read gives no keys; signals still end the screen.
            let Ok(there) = event::poll(KEYS) else { return };
            if !there {
                continue;
            }
            let sent = match event::read() {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => sender.blocking_send(key),
                // Any other event (the window's new size) only has the screen drawn anew.
                Ok(_) => sender.blocking_send(KeyEvent::new(KeyCode::Null, KeyModifiers::NONE)),
                Err(_) => return,
            };
            if sent.is_err() {
                return;
            }
        }
    });
    keys
}

impl Screen {
    async fn show(mut self, mut look: impl AsyncFnMut() -> View, terminal: &mut DefaultTerminal) -> Result<(), Error> {
        let mut keys = keys();
        // A silent broker gives no looks, and its silence is to be seen.
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            terminal.draw(|frame| self.draw(frame)).map_err(Error::Draw)?;
            tokio::select! {
                view = look() => self.take(view),
                Some(key) = keys.recv() => if self.press(key) { return Ok(()) },
                _ = ticks.tick() => {}
            }
        }
    }

    fn take(&mut self, view: View) {
        for (stage, history) in view.stages.iter().zip(&mut self.history) {
            if history.len() == HISTORY {
                history.pop_front();
            }
            history.push_back(stage.pulse().0.round() as u64);
        }
        self.view = Some(view);
    }

    /// Does what a key means; returns whether that is the end.
    fn press(&mut self, key: KeyEvent) -> bool {
        let workers = self.view.as_ref().map_or(0, |view| view.workers.len());
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
            KeyCode::Down | KeyCode::Char('j') => self.first = (self.first + 1).min(workers.saturating_sub(1)),
            KeyCode::Up | KeyCode::Char('k') => self.first = self.first.saturating_sub(1),
            _ => {}
        }
        false
    }

    fn coloured(&self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn draw(&self, frame: &mut Frame) {
        let height = |stage: usize| {
            let queues = self.view.as_ref().map_or(0, |view| view.stages[stage].queues.len());
            3 + queues.clamp(1, QUEUES + 1) as u16
        };
        let stages = [0, 1, 2].map(height);
        let planner = self.view.as_ref().and_then(figures::planner);
        let engines = self.view.as_ref().map_or(0, |view| engines(view).count());
        let engines = if engines == 0 { 0 } else { 2 + engines.min(ENGINES) as u16 };
        let planner_lines = 2 * u16::from(planner.is_some());
        // What the others leave.
        let taken = 1 + stages.iter().sum::<u16>() + WORKERS + planner_lines + 1;
        let engines = engines.min(frame.area().height.saturating_sub(taken));
        let [head, ingest, prefill, decode, workers, engines, thinks, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(stages[0]),
            Constraint::Length(stages[1]),
            Constraint::Length(stages[2]),
            Constraint::Min(WORKERS),
            Constraint::Length(engines),
            Constraint::Length(planner_lines),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        if let Some(planner) = planner {
            frame.render_widget(Paragraph::new(planner).wrap(Wrap { trim: true }), thinks);
        }
        self.head(frame, head);
        if let Some(view) = &self.view {
            for (index, area) in [ingest, prefill, decode].into_iter().enumerate() {
                self.stage(frame, area, &view.stages[index], index);
            }
            self.workers(frame, workers, view);
            self.engines(frame, engines, view);
        }
        let keys = "q quit   ↑ ↓ move through the workers";
        frame.render_widget(Paragraph::new(keys).style(Style::new().add_modifier(Modifier::DIM)), foot);
    }

    fn head(&self, frame: &mut Frame, area: Rect) {
        let mut spans = vec![
            Span::styled("baton top", Style::new().add_modifier(Modifier::BOLD)),
            Span::raw(format!("  {}  ", self.title)),
        ];
        match &self.view {
            None => spans.push(Span::raw("the first look comes in a second")),
            Some(view) => {
                spans.push(Span::raw(figures::time(view)));
                let silent = (self.now_ms)().saturating_sub(view.at_ms);
                if silent > SILENT_MS {
                    let text = format!("  the broker has not answered for {} s", silent / 1_000);
                    spans.push(Span::styled(text, self.coloured(Color::Red).add_modifier(Modifier::BOLD)));
                }
            }
        }
        frame.render_widget(Paragraph::new(Line::from(spans)), area);
    }

    fn stage(&self, frame: &mut Frame, area: Rect, stage: &StageView, index: usize) {
        let title = Span::styled(format!(" {} ", stage.stage), Style::new().add_modifier(Modifier::BOLD));
        let block = Block::new().borders(Borders::TOP).title(title);
        let inner = block.inner(area);
        frame.render_widget(block, area);
        let [text, graph] = Layout::horizontal([Constraint::Min(52), Constraint::Percentage(50)]).areas(inner);
        let waiting = if stage.workers == 0 && stage.waiting > 0 {
            self.coloured(Color::Yellow).add_modifier(Modifier::BOLD)
        } else {
            Style::new()
        };
        let mut lines = vec![
            Line::from(vec![
                Span::styled(format!("{} waiting", stage.waiting), waiting),
                Span::raw(format!("  {} held  ", stage.held)),
                Span::raw(format!("{} workers  {} of {} slots busy", stage.workers, stage.busy, stage.slots)),
            ]),
            Line::raw(rates(stage)),
        ];
        for queue in stage.queues.iter().take(QUEUES) {
            let model = queue.model.as_ref().map_or(String::new(), |model| format!("{model} "));
            let text = format!("  {model}{}: {} waiting, {} held", queue.lane, queue.waiting, queue.delivered);
            lines.push(Line::styled(text, Style::new().add_modifier(Modifier::DIM)));
        }
        if stage.queues.len() > QUEUES {
            lines.push(Line::raw(format!("  and {} more queues (--once lists all)", stage.queues.len() - QUEUES)));
        }
        frame.render_widget(Paragraph::new(lines), text);
        let (now, unit) = stage.pulse();
        let history = &self.history[index];
        let most = history.iter().max().copied().unwrap_or_default();
        let name = format!(" {} {unit}, at most {} ", figures::rate(now), figures::rate(most as f64));
        // What fits, the latest at the right.
        let skipped = history.len().saturating_sub(usize::from(graph.width));
        let data: Vec<u64> = history.iter().skip(skipped).copied().collect();
        let line = Sparkline::default().data(&data).style(self.coloured(Color::Cyan)).block(Block::new().title(name));
        frame.render_widget(line, graph);
    }

    fn workers(&self, frame: &mut Frame, area: Rect, view: &View) {
        let rows = view.workers.iter().skip(self.first).map(|view| {
            let worker = &view.worker;
            let slots = format!("{}/{}", worker.busy, worker.room());
            let first = [worker.worker.clone(), figures::state(worker.draining, worker.busy).to_owned(), slots];
            let style = if worker.draining { self.coloured(Color::Yellow) } else { Style::new() };
            Row::new(first.into_iter().chain(figures::cells(&view.rates))).style(style)
        });
        let headings = ["worker", "state", "slots"].into_iter().chain(figures::RATES);
        let widths = [24, 7, 9, 8, 9, 7, 9, 11, 11].map(Constraint::Length);
        let name = format!(" {} workers ", view.workers.len());
        let table = Table::new(rows, widths)
            .header(Row::new(headings).style(Style::new().add_modifier(Modifier::BOLD)))
            .block(Block::new().borders(Borders::TOP).title(name));
        frame.render_widget(table, area);
    }

    fn engines(&self, frame: &mut Frame, area: Rect, view: &View) {
        // Those that take nothing first.
        let mut all: Vec<_> = engines(view).collect();
        all.sort_by_key(|(_, engine)| engine.up);
        let rows = all.iter().map(|(worker, engine)| {
            let style = if engine.up { Style::new() } else { self.coloured(Color::Yellow) };
            Row::new([(*worker).to_owned()].into_iter().chain(figures::engine_cells(engine))).style(style)
        });
        let headings = ["worker"].into_iter().chain(figures::ENGINES);
        let widths = [24, 16, 32, 6, 9, 10, 10, 8, 8, 12].map(Constraint::Length);
        let name = match figures::faults(view).first() {
            Some(fault) => format!(" {} engines: {fault} ", all.len()),
            None => format!(" {} engines ", all.len()),
        };
        let table = Table::new(rows, widths)
            .header(Row::new(headings).style(Style::new().add_modifier(Modifier::BOLD)))
            .block(Block::new().borders(Borders::TOP).title(name));
        frame.render_widget(table, area);
    }
}

/// The instances of foreign engines, with the worker that asks them.
fn engines(view: &View) -> impl Iterator<Item = (&str, &Upstream)> {
    let workers = view.workers.iter().map(|view| &view.worker);
    workers.flat_map(|worker| worker.upstreams.iter().map(|engine| (worker.worker.as_str(), engine)))
}

/// The rates that mean something in a stage.
fn rates(stage: &StageView) -> String {
    let [jobs, prompt, reused, output, put, get] = figures::cells(&stage.rates);
    match stage.stage {
        Stage::Ingest => format!("{jobs} jobs/s  {prompt} prompt tok/s"),
        Stage::Prefill => format!("{jobs} jobs/s  {prompt} prompt tok/s, {reused} reused  KV put {put}/s get {get}/s"),
        Stage::Decode => format!("{jobs} jobs/s  {output} output tok/s  KV get {get}/s"),
    }
}

#[cfg(test)]
mod tests {
    use baton_contract::stats::{Counts, Queue, Snapshot, Worker};
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    /// Every size can be drawn, with and without figures.
    #[test]
    fn the_screen_fits_any_window_and_keys_do_what_they_say() {
        let name = |text: &str| baton_contract::Name::new(text).unwrap();
        let queue = |lane: usize| Queue {
            stage: Stage::Prefill,
            model: Some(name("sim")),
            lane: name(&format!("lane-{lane}")),
            waiting: 3,
            delivered: 1,
        };
        let engine = |url: &str, up| Upstream {
            url: url.into(),
            up,
            fault: (!up).then(|| "connection refused".to_owned()),
            ..Upstream::default()
        };
        let worker = Worker {
            worker: "decode-1".into(),
            stage: Stage::Decode,
            version: String::new(),
            roles: Vec::new(),
            models: Vec::new(),
            started_ms: 0,
            at_ms: 0,
            draining: false,
            ended: false,
            slots: 0,
            busy: 0,
            counts: Counts::default(),
            compute_ms: 0,
            engine_batch: 0,
            upstreams: vec![engine("http://a:8000", true), engine("http://b:8000", false)],
        };
        let queues = (0..6).map(queue).collect();
        let now = Snapshot { queues, workers: vec![worker], ..Snapshot::default() };
        let mut screen = Screen {
            title: "baton at nats://a".into(),
            view: None,
            history: Default::default(),
            first: 0,
            colours: true,
            now_ms: || 60_000,
        };
        for (width, height) in [(1, 1), (20, 5), (80, 24), (200, 60)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| screen.draw(frame)).unwrap();
            screen.take(View::of(&now, &now));
            terminal.draw(|frame| screen.draw(frame)).unwrap();
            if height >= 24 {
                let text: String = terminal.backend().buffer().content().iter().map(|cell| cell.symbol()).collect();
                for part in ["18 waiting", "lane-3: 3 waiting", "q quit", "not answered"] {
                    assert!(text.contains(part), "{part}: {text}");
                }
                assert!(height < 60 || text.contains("2 engines: http://b:8000 is down"), "{text}");
            }
        }
        let key = |code| KeyEvent::new(code, KeyModifiers::NONE);
        assert!(!screen.press(key(KeyCode::Down)) && screen.first == 0, "there are no more workers to move through");
        let page = figures::page(screen.view.as_ref().unwrap());
        assert!(page.contains("http://a:8000") && page.contains("http://b:8000 is down: connection refused"), "{page}");
        assert!(screen.press(key(KeyCode::Char('q'))));
    }
}
