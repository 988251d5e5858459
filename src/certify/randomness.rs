//! Whether bytes look like the output of a cipher: tests that random bytes fail less often than once in 10¹² windows, and
//! that text, programs, databases, pictures without compression and the like do not pass. What they cannot tell from
//! ciphertext is what is as dense: compressed files, and what others encrypted. The certificate says so.

/// A window, in bytes.
pub(super) const WINDOW: usize = 4096;
/// Windows of at least so many bytes are tested by their histogram.
const LONG: usize = 2048;
/// Shorter ones than this say nothing.
const SHORTEST: usize = 64;
/// The greatest χ² over 256 values of the byte, 255 degrees of freedom. Its mean is 255 and its standard deviation 22.6;
/// at 512, more than eleven of them above, the tail is far below 10⁻¹² also where 8 of each value are expected.
const GREATEST: f64 = 512.0;
/// ln(2 · 10¹²) / 2: by Hoeffding's inequality, a sum of N bits is off its mean by √(N · this) with a probability of at
/// most 10⁻¹².
const DEVIATION: f64 = 14.162;

/// How often random bytes are taken for something else, as the certificate says it.
pub(super) const FALSE_POSITIVES: &str = "at most 2 in 10^12 windows";

/// What was tested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tested {
    /// Windows that were tested.
    pub windows: u64,
    /// Those of them that do not look random.
    pub suspicious: u64,
    /// Bytes in windows that are too short.
    pub too_short: u64,
    /// Bytes that are zero: holes.
    pub zeros: u64,
}

impl Tested {
    pub fn add(&mut self, other: Self) {
        self.windows += other.windows;
        self.suspicious += other.suspicious;
        self.too_short += other.too_short;
        self.zeros += other.zeros;
    }

    /// Tests bytes, window by window.
    pub fn test(&mut self, bytes: &[u8]) {
        for window in bytes.chunks(WINDOW) {
            if window.iter().all(|byte| *byte == 0) {
                self.zeros += window.len() as u64;
            } else if window.len() < SHORTEST {
                self.too_short += window.len() as u64;
            } else {
                self.windows += 1;
                self.suspicious += u64::from(!looks_random(window));
            }
        }
    }
}

fn looks_random(window: &[u8]) -> bool {
    if window.len() >= LONG { chi_square(window) <= GREATEST } else { bits_are_even(window) }
}

fn chi_square(window: &[u8]) -> f64 {
    let mut counts = [0_u32; 256];
    window.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    let expected = window.len() as f64 / 256.0;
    counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum()
}

/// Of all bits, and of the highest ones, about half are set.
fn bits_are_even(window: &[u8]) -> bool {
    let even = |set: u32, of: usize| (f64::from(set) - of as f64 / 2.0).abs() <= (of as f64 * DEVIATION).sqrt();
    let all: u32 = window.iter().map(|byte| byte.count_ones()).sum();
    let high: u32 = window.iter().map(|byte| u32::from(byte >> 7)).sum();
    even(all, window.len() * 8) && even(high, window.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tested(bytes: &[u8]) -> Tested {
        let mut tested = Tested::default();
        tested.test(bytes);
        tested
    }

    #[test]
    fn random_bytes_of_every_length_pass_with_room_to_spare() {
        let mut random = vec![0; 40 << 20];
        blake3::Hasher::new().update(b"random").finalize_xof().fill(&mut random);
        assert_eq!(tested(&random), Tested { windows: 10_240, ..Tested::default() });
        let worst = random.chunks(WINDOW).map(chi_square).fold(0.0, f64::max);
        assert!(worst < 400.0, "{worst}");
        for len in SHORTEST..LONG + 2 {
            assert_eq!(tested(&random[len * 7..len * 7 + len]).suspicious, 0, "{len} bytes");
        }
    }

    #[test]
    fn what_is_no_ciphertext_does_not_pass() {
        let text = b"Dear Sir or Madam, what follows is nobody's business but yours and mine. ".repeat(100);
        for len in [64, 100, 2047, 2048, 4096, text.len()] {
            let found = tested(&text[..len]);
            assert_eq!(found.suspicious, found.windows, "{len} bytes of text");
        }
        let program = std::fs::read("/proc/self/exe").unwrap();
        let found = tested(&program[..1 << 20]);
        assert!(found.suspicious * 10 > found.windows * 9, "{found:?}");
        let utf16: Vec<u8> = text.iter().flat_map(|byte| [*byte, 0]).collect();
        assert_eq!(tested(&utf16[..4096]).suspicious, 1);
    }

    #[test]
    fn holes_and_what_is_too_short_are_counted_apart() {
        let found = tested(&[&[0; 8192][..], b"short"].concat());
        assert_eq!(found, Tested { windows: 0, suspicious: 0, too_short: 5, zeros: 8192 });
    }
}
