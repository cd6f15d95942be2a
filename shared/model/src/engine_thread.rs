//! The thread that owns a model. It takes commands between two rounds of work, and ends when nobody can send any more.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{self, JoinHandle};

use crate::threads::ComputeThreads;

/// What the thread works on.
pub trait Rounds {
    /// What it takes.
    type Command: Send + 'static;

    /// Takes a command between two rounds.
    fn obey(&mut self, command: Self::Command);

    /// Does the next round of work; false if there is nothing to do before another command.
    fn round(&mut self) -> bool;

    /// Is called whenever the thread begins to wait for a command.
    fn idle(&self) {}
}

/// A running thread.
pub struct EngineThread<C> {
    commands: Sender<C>,
    numbers: AtomicU64,
    _thread: JoinHandle<()>,
}

/// Work in the thread's hands. Dropping it sends the command that ends the work.
pub struct Ticket<C> {
    number: u64,
    commands: Sender<C>,
    leave: fn(u64) -> C,
}

impl<C: Send + 'static> EngineThread<C> {
    /// Starts a thread of that name, which computes on `threads`. `ended` is dropped when it ends, however that happens.
    /// Fails if the system gives no thread.
    pub fn start<R: Rounds<Command = C>>(
        name: &str,
        threads: ComputeThreads,
        rounds: impl FnOnce() -> R + Send + 'static,
        ended: impl Send + 'static,
    ) -> io::Result<Self> {
        let (commands, waiting) = mpsc::channel();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _ended = ended;
            threads.run(move || serve(rounds(), &waiting));
        })?;
        Ok(Self { commands, numbers: AtomicU64::new(0), _thread: thread })
    }

    /// Hands over work by the command that `begin` makes of its number; `leave` makes the one that ends it. If the thread
    /// has ended, the command is dropped.
    pub fn submit(&self, begin: impl FnOnce(u64) -> C, leave: fn(u64) -> C) -> Ticket<C> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let ticket = Ticket { number, commands: self.commands.clone(), leave };
        ticket.send(begin(number));
        ticket
    }
}

impl<C> Ticket<C> {
    /// Names the work among all that its thread was given.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Sends a command about the work; dropped if the thread has ended.
    pub fn send(&self, command: C) {
        let _ = self.commands.send(command);
    }
}

impl<C> Drop for Ticket<C> {
    fn drop(&mut self) {
        self.send((self.leave)(self.number));
    }
}

/// Works until nobody can send commands any more.
fn serve<R: Rounds>(mut rounds: R, commands: &Receiver<R::Command>) {
    loop {
        loop {
            match commands.try_recv() {
                Ok(command) => rounds.obey(command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        if !rounds.round() {
            rounds.idle();
            let Ok(command) = commands.recv() else { return };
            rounds.obey(command);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Command {
        Begin(u64),
        Leave(u64),
    }

    /// Tells what it was given, and works one round for each piece of work.
    struct Recorder {
        open: usize,
        told: Sender<String>,
    }

    impl Rounds for Recorder {
        type Command = Command;

        fn obey(&mut self, command: Command) {
            let text = match command {
                Command::Begin(number) => format!("begin {number}"),
                Command::Leave(number) => format!("leave {number}"),
            };
            self.open += usize::from(text.starts_with("begin"));
            self.told.send(text).unwrap();
        }

        fn round(&mut self) -> bool {
            let works = self.open > 0;
            self.open = self.open.saturating_sub(1);
            works
        }

        fn idle(&self) {
            self.told.send("idle".to_owned()).unwrap();
        }
    }

    #[test]
    fn work_ends_with_its_ticket_and_the_thread_with_its_users() {
        let (told, heard) = mpsc::channel();
        let threads = ComputeThreads::of_one_in(2).unwrap();
        let (ended, end) = mpsc::channel::<()>();
        let thread = EngineThread::start("recorder", threads, || Recorder { open: 0, told }, ended).unwrap();
        let first = thread.submit(Command::Begin, Command::Leave);
        let second = thread.submit(Command::Begin, Command::Leave);
        assert_eq!((first.number(), second.number()), (0, 1));
        drop(first);
        drop(thread);
        assert!(end.try_recv().is_err(), "a ticket keeps the thread");
        drop(second);
        assert!(end.recv().is_err(), "it has ended");
        let told: Vec<String> = heard.into_iter().filter(|text| text != "idle").collect();
        assert_eq!(told, ["begin 0", "begin 1", "leave 0", "leave 1"]);
    }
}
