//! The one thread of a provider that talks over a network: questions come by a channel, several are under way at once,
//! and each is answered or given up within the deadline. Here are the retries, with backoff. Depends on the seam.
//! Invariant: whoever asks gets an answer within the deadline and a little, whatever the service does.

use super::{Backoff, KmsError, KmsErrorKind, THROTTLED};
use crate::crypto::wipe_stack;
use std::future::Future;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// So many tries for one question, if the deadline allows for them.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// A service that throttles wants to be left alone for longer.
const FIRST_PAUSE_THROTTLED: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(16);
/// Given to the thread beyond the deadline to hand over the answer.
const HANDOVER: Duration = Duration::from_millis(500);

/// A service that can be asked, on a thread of its own.
pub(super) trait Service: Send + Sync + 'static {
    /// What it is asked.
    type Question: Send + Sync + 'static;
    /// What it says.
    type Answer: Send + 'static;

    /// Its host, for messages.
    fn host(&self) -> &str;

    /// One try, a new login included if it needs one. An error of kind `Unreachable` is tried again, as long as the
    /// deadline allows; every other one is final.
    fn ask(&self, question: &Self::Question) -> impl Future<Output = Result<Self::Answer, KmsError>> + Send;

    /// Runs beside the questions, for as long as the thread does: what has to be done in time, and not when asked.
    fn upkeep(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

struct Letter<S: Service> {
    question: S::Question,
    reply: mpsc::SyncSender<Result<S::Answer, KmsError>>,
}

/// The thread. It ends when this is dropped.
pub(super) struct Worker<S: Service> {
    letters: UnboundedSender<Letter<S>>,
    deadline: Duration,
}

impl<S: Service> Worker<S> {
    /// Starts the thread `kmsfs-NAME`; nobody is asked anything yet.
    ///
    /// # Errors
    /// [`KmsErrorKind::Misconfigured`] if the system gives no thread.
    pub(super) fn start(name: &str, service: S, deadline: Duration) -> Result<Self, KmsError> {
        let failed = |error: std::io::Error| {
            KmsError::new(KmsErrorKind::Misconfigured, format!("no thread to ask {} with: {error}", service.host()))
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let builder = thread::Builder::new().name(format!("kmsfs-{name}"));
        let (letters, mut inbox) = unbounded_channel::<Letter<S>>();
        let host = service.host().to_owned();
        let service = Arc::new(service);
        let run = move || {
            runtime.block_on(async {
                let upkeep = Arc::clone(&service);
                tokio::spawn(async move { upkeep.upkeep().await });
                while let Some(Letter { question, reply }) = inbox.recv().await {
                    let service = Arc::clone(&service);
                    tokio::spawn(async move {
                        // Who asked may have gone; then the answer is wiped here.
                        let _ = reply.send(answer(&*service, &question, deadline).await);
                        wipe_stack();
                    });
                }
            });
            // Not to wait for a name that is still being looked up.
            runtime.shutdown_background();
        };
        builder.spawn(run).map_err(|error| {
            KmsError::new(KmsErrorKind::Misconfigured, format!("no thread to ask {host} with: {error}"))
        })?;
        Ok(Self { letters, deadline })
    }

    /// Asks, and waits for the answer for the deadline at most.
    ///
    /// # Errors
    /// What the service said, or [`KmsErrorKind::Unreachable`] if it said nothing in time.
    pub(super) fn ask(&self, question: S::Question) -> Result<S::Answer, KmsError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let gone = |what: &str| KmsError::new(KmsErrorKind::Unreachable, what);
        self.letters.send(Letter { question, reply }).map_err(|_| gone("the thread that asks the KMS is gone"))?;
        answer.recv_timeout(self.deadline + HANDOVER).unwrap_or_else(|error| match error {
            mpsc::RecvTimeoutError::Timeout => Err(gone("the KMS does not answer in time")),
            mpsc::RecvTimeoutError::Disconnected => Err(gone("the call to the KMS ended without an answer")),
        })
    }

    /// The longest that one question may take, its retries included.
    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }
}

/// Tries until there is an answer, or no time for another try.
async fn answer<S: Service>(service: &S, question: &S::Question, deadline: Duration) -> Result<S::Answer, KmsError> {
    let end = Instant::now() + deadline;
    let mut pauses = Backoff::seeded(FIRST_PAUSE, LONGEST_PAUSE);
    let mut throttled = Backoff::seeded(FIRST_PAUSE_THROTTLED, LONGEST_PAUSE);
    let mut tries = 0;
    let mut last: Option<KmsError> = None;
    loop {
        tries += 1;
        let left = end.saturating_duration_since(Instant::now());
        let Ok(result) = tokio::time::timeout(left, service.ask(question)).await else {
            // What went wrong before says more than that there was no time left.
            let message = format!("{} does not answer within {deadline:?}", service.host());
            return Err(last.unwrap_or_else(|| KmsError::new(KmsErrorKind::Unreachable, message)));
        };
        let error = match result {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if error.kind != KmsErrorKind::Unreachable || tries == TRIES {
            return Err(error);
        }
        let pause = match error.retry_after {
            Some(asked) => asked,
            None if error.code.as_deref() == Some(THROTTLED) => throttled.delay(),
            None => pauses.delay(),
        };
        if Instant::now() + pause >= end {
            return Err(error);
        }
        last = Some(error);
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Fails in this way so many times; then it says how often it was asked. Never answers to 0.
    struct Flaky {
        error: KmsError,
        asked: AtomicU32,
    }

    impl Service for Flaky {
        type Question = u32;
        type Answer = u32;

        fn host(&self) -> &str {
            "flaky"
        }

        async fn ask(&self, failures: &u32) -> Result<u32, KmsError> {
            let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
            if *failures == 0 {
                std::future::pending::<()>().await;
            }
            if asked <= *failures { Err(self.error.clone()) } else { Ok(asked) }
        }
    }

    fn flaky(error: KmsError, deadline: Duration) -> Worker<Flaky> {
        Worker::start("flaky", Flaky { error, asked: AtomicU32::new(0) }, deadline).unwrap()
    }

    #[test]
    fn only_silence_is_tried_again() {
        let deadline = Duration::from_secs(20);
        let error = |kind| KmsError::new(kind, "no");
        assert_eq!(flaky(error(KmsErrorKind::Unreachable), deadline).ask(2), Ok(3));
        assert_eq!(flaky(error(KmsErrorKind::Unreachable), deadline).ask(9), Err(error(KmsErrorKind::Unreachable)));
        for kind in [KmsErrorKind::Refused, KmsErrorKind::Damaged, KmsErrorKind::Credentials] {
            let worker = flaky(error(kind), deadline);
            assert_eq!(worker.ask(1), Err(error(kind)));
            assert_eq!(worker.ask(1), Ok(2));
        }
    }

    #[test]
    fn the_deadline_holds_for_an_answer_that_never_comes_and_for_one_that_is_put_off() {
        let deadline = Duration::from_millis(300);
        let later = KmsError {
            retry_after: Some(Duration::from_secs(60)),
            ..KmsError::new(KmsErrorKind::Unreachable, "later")
        };
        let begin = Instant::now();
        assert_eq!(flaky(later.clone(), deadline).ask(0).unwrap_err().kind, KmsErrorKind::Unreachable);
        assert_eq!(flaky(later.clone(), Duration::from_secs(20)).ask(1), Err(later));
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    }
}
