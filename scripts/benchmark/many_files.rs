//! Makes, looks at, reads or deletes many small files, as fast as the system calls return: a tool for the scripts that
//! measure.
//!
//! Usage: many_files create|stat|read|delete DIRECTORY FILES SIZE [THREADS]
//!
//! The files are spread over 100 directories, which `create` makes before the clock starts and `delete` removes when it
//! has stopped. Prints one JSON object: the seconds that all files took, and the 50th and the 99th percentile of one file
//! in microseconds.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::Instant;

const DIRECTORIES: usize = 100;

fn directory(tree: &Path, number: usize) -> PathBuf {
    tree.join(format!("directory-{number:02}"))
}

/// What is done with one file of `content.len()` bytes.
fn act(work: &str, path: &Path, content: &[u8], buffer: &mut [u8]) -> io::Result<()> {
    match work {
        "create" => File::create_new(path)?.write_all(content),
        "stat" => match fs::symlink_metadata(path)?.len() == content.len() as u64 {
            true => Ok(()),
            false => Err(io::Error::other("another size than it was made with")),
        },
        "read" => {
            File::open(path)?.read_exact(buffer)?;
            match buffer == content {
                true => Ok(()),
                false => Err(io::Error::other("another content than it was made with")),
            }
        }
        _ => fs::remove_file(path),
    }
}

/// Nanoseconds for each of the files that are this thread's part.
fn part(work: &str, paths: &[PathBuf], content: &[u8], start: &Barrier) -> io::Result<Vec<u64>> {
    let mut buffer = vec![0; content.len()];
    let mut times = Vec::with_capacity(paths.len());
    start.wait();
    let mut last = Instant::now();
    for path in paths {
        act(work, path, content, &mut buffer)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let now = Instant::now();
        times.push(now.duration_since(last).as_nanos() as u64);
        last = now;
    }
    Ok(times)
}

fn run(work: &str, tree: &Path, files: usize, size: usize, threads: usize) -> io::Result<()> {
    if work == "create" {
        fs::create_dir_all(tree)?;
        (0..DIRECTORIES).try_for_each(|number| fs::create_dir(directory(tree, number)))?;
    }
    // One directory after the other, as programs do it; each thread has directories of its own.
    let in_one = files.div_ceil(DIRECTORIES);
    let path = |number: usize| directory(tree, number / in_one).join(format!("file-{number:07}.dat"));
    let paths: Vec<PathBuf> = (0..files).map(path).collect();
    let content: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
    let start = Barrier::new(threads + 1);
    let share = DIRECTORIES.div_ceil(threads) * in_one;
    let (seconds, mut times) = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|thread| {
                let paths = &paths[(thread * share).min(files)..((thread + 1) * share).min(files)];
                let (content, start) = (&content, &start);
                scope.spawn(move || part(work, paths, content, start))
            })
            .collect();
        start.wait();
        let clock = Instant::now();
        let mut times = Vec::with_capacity(files);
        for part in parts {
            times.extend(part.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))?);
        }
        Ok::<_, io::Error>((clock.elapsed().as_secs_f64(), times))
    })?;
    if work == "delete" {
        (0..DIRECTORIES).try_for_each(|number| fs::remove_dir(directory(tree, number)))?;
    }
    times.sort_unstable();
    let percentile = |of: usize| times.get(times.len() * of / 100).map_or(0.0, |time| *time as f64 / 1000.0);
    println!("{{\"seconds\": {seconds:.6}, \"p50_us\": {:.1}, \"p99_us\": {:.1}}}", percentile(50), percentile(99));
    Ok(())
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse::<usize>().ok());
    let threads = if arguments.len() > 4 { number(4) } else { Some(1) };
    let (Some("create" | "stat" | "read" | "delete"), Some(files @ 1..), Some(size), Some(threads @ 1..)) =
        (arguments.first().map(String::as_str), number(2), number(3), threads)
    else {
        eprintln!("Usage: many_files create|stat|read|delete DIRECTORY FILES SIZE [THREADS]");
        std::process::exit(2);
    };
    if let Err(error) = run(&arguments[0], Path::new(&arguments[1]), files, size, threads) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}
