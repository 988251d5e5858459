//! The lines of a log, of all series together, and those that come while one looks.

use super::chain::Read;
use super::log;
use crate::store::StoreDir;
use std::collections::BTreeMap;
use std::io;

/// How far each series was read: the file, and how many bytes of it.
#[derive(Clone, Debug, Default)]
pub struct Cursor(BTreeMap<String, (u64, u64)>);

/// A line, and where it was.
#[derive(Clone, Debug)]
pub struct Tail {
    /// The series.
    pub series: String,
    /// The line as it is in the file, without its newline.
    pub text: Vec<u8>,
    /// What it says; `None` if it is not a line of a log.
    pub read: Option<Read>,
}

/// The whole lines behind a cursor, which moves on; ordered by their times, and in each series by their place.
///
/// # Errors
/// The store's.
pub fn tail(dir: &dyn StoreDir, cursor: &mut Cursor) -> io::Result<Vec<Tail>> {
    let mut out = Vec::new();
    for series in log::all_series(dir)? {
        let (mut at, mut offset) = cursor.0.get(&series).copied().unwrap_or((0, 0));
        for number in log::files(dir, &series)? {
            if number < at {
                continue;
            }
            if number > at {
                (at, offset) = (number, 0);
            }
            let name = log::name(&series, number);
            // Not to read all of it again while nothing happens. A file may have given way to newer ones just now.
            let bytes = match dir.stat(name.as_bytes()) {
                Ok(stat) if stat.len.0 == offset => continue,
                Ok(_) => log::read(dir, &name)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            // A file that became shorter lost what a crash had left of a line.
            let new = bytes.get(offset as usize..).unwrap_or_default();
            for (_, line) in log::lines(new) {
                out.push(Tail { series: series.clone(), text: line.to_vec(), read: Read::parse(line).ok() });
            }
            offset += new.len() as u64 - log::torn(new);
        }
        cursor.0.insert(series, (at, offset));
    }
    // A clock that was set back must not change the order within a series.
    let mut latest: BTreeMap<String, String> = BTreeMap::new();
    let mut keyed: Vec<(String, Tail)> = out
        .into_iter()
        .map(|line| {
            let latest = latest.entry(line.series.clone()).or_default();
            if let Some(read) = line.read.as_ref().filter(|read| read.time > *latest) {
                latest.clone_from(&read.time);
            }
            (latest.clone(), line)
        })
        .collect();
    keyed.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(keyed.into_iter().map(|(_, line)| line).collect())
}
