//! A KMS for unit tests: it says what it is told to say, counts, and holds calls until they are let go.

use super::{CallIds, Facts, KekId, Kms, KmsError, KmsErrorKind, Unwrapped, WrapAlgorithm, Wrapped};
use crate::crypto::Secret32;
use crate::units::VolumeId;
use parking_lot::{Condvar, Mutex};
use std::time::Duration;

/// How long a test waits for something that should happen at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(crate) struct FakeKms {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    outcome: Option<KmsErrorKind>,
    holding: bool,
    panicking: bool,
    calls: u64,
    waiting: u64,
    deadline: Option<Duration>,
}

impl FakeKms {
    /// From now on calls end in this: success, or an error of this kind.
    pub(crate) fn answer(&self, outcome: Result<(), KmsErrorKind>) {
        self.state.lock().outcome = outcome.err();
    }

    /// From now on calls do not come back, until [`FakeKms::let_go`].
    pub(crate) fn hold(&self) {
        self.state.lock().holding = true;
    }

    pub(crate) fn let_go(&self) {
        self.state.lock().holding = false;
        self.changed.notify_all();
    }

    pub(crate) fn panic_on_calls(&self, panicking: bool) {
        self.state.lock().panicking = panicking;
    }

    pub(crate) fn set_deadline(&self, deadline: Duration) {
        self.state.lock().deadline = Some(deadline);
    }

    pub(crate) fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// Blocks until so many calls are held.
    pub(crate) fn wait_for_held(&self, calls: u64) {
        let mut state = self.state.lock();
        while state.waiting < calls {
            assert!(!self.changed.wait_for(&mut state, PATIENCE).timed_out(), "only {} calls came", state.waiting);
        }
    }
}

impl Kms for FakeKms {
    fn wrap(&self, secret: &Secret32, _volume: VolumeId) -> Result<Wrapped, KmsError> {
        let blob = secret.expose().iter().map(|byte| byte ^ 0x55).collect();
        Ok(Wrapped { kek: self.current()?, algorithm: WrapAlgorithm::LocalAes256Gcm, blob })
    }

    fn unwrap(&self, wrapped: &Wrapped, _volume: VolumeId) -> Result<Unwrapped, KmsError> {
        let mut state = self.state.lock();
        state.calls += 1;
        state.waiting += 1;
        self.changed.notify_all();
        while state.holding {
            self.changed.wait(&mut state);
        }
        state.waiting -= 1;
        assert!(!state.panicking, "the fake KMS panics, as it was told");
        match state.outcome {
            Some(kind) => Err(KmsError::new(kind, format!("{kind:?}"))),
            None => {
                let bytes: Vec<u8> = wrapped.blob.iter().map(|byte| byte ^ 0x55).collect();
                let secret = Secret32::from_slice(&bytes);
                let secret = secret.ok_or_else(|| KmsError::new(KmsErrorKind::Damaged, "not 32 bytes"))?;
                let request = Some(format!("call-{}", state.calls));
                Ok(Unwrapped { secret, ids: CallIds { request, client_request: None } })
            }
        }
    }

    fn current(&self) -> Result<KekId, KmsError> {
        Ok(KekId("fake:key#1".into()))
    }

    fn facts(&self) -> Result<Facts, KmsError> {
        Ok(Facts::new(self.current()?, "fake"))
    }

    fn deadline(&self) -> Duration {
        self.state.lock().deadline.unwrap_or(PATIENCE)
    }
}
