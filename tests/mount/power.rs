//! The program is killed, and the power fails, again and again in the middle of what programs write. What `fsync`
//! acknowledged is there afterwards, everything is readable, and nothing is there that nobody wrote.
//!
//! `scripts/power-cuts` does the same for longer.

use crate::disk::Disk;
use crate::harness::{Mount, Outcome, Volume};
use crate::load::{Draws, Load};
use crate::recovery::kill;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

const PROGRAMS: usize = 4;

/// How often, unless somebody wants it more often.
fn times(usual: u64) -> u64 {
    std::env::var("KMSFS_CUTS").ok().and_then(|cuts| cuts.parse().ok()).unwrap_or(usual)
}

fn seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_micros() as u64);
    let seed = std::env::var("KMSFS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(now % 1_000_000);
    println!("KMSFS_SEED={seed}");
    seed
}

/// Lets the programs work for a moment, long or short.
fn work(load: &mut Load, draws: &mut Draws) {
    load.start(draws.below(1 << 48));
    std::thread::sleep(Duration::from_millis([5, 200, 700, 1500][draws.below(4) as usize] + draws.below(200)));
}

fn detach(mount: &Mount) {
    let _ = rustix::mount::unmount(mount.at(""), rustix::mount::UnmountFlags::DETACH);
}

fn compare(mount: &Mount, load: &mut Load, context: &str) {
    load.check().unwrap_or_else(|why| panic!("{context}: {why}"));
    assert_eq!(mount.status()["damaged"], 0, "{context}: a crash looks like damage");
}

#[test]
fn killed_again_and_again_it_keeps_what_it_promised() -> Outcome {
    let mut draws = Draws(seed());
    let mut mount = Mount::new();
    let mut load = Load::new(&mount.at(""), PROGRAMS)?;
    for round in 0..times(8) {
        work(&mut load, &mut draws);
        load.freeze();
        kill(&mount);
        load.end();
        mount = mount.into_dead().mount(&[]);
        compare(&mount, &mut load, &format!("kill {round}"));
    }
    println!("{} promises", load.promises.load(Ordering::Relaxed));
    Ok(())
}

fn loses_power(kind: &'static str) -> Outcome {
    let seed = seed();
    let mut draws = Draws(seed);
    let mut disk = Disk::new(kind)?;
    let volume = Volume::at(&disk.path().join("volume"));
    let mut mount = volume.mount(&[]);
    let mut load = Load::new(&mount.at(""), PROGRAMS)?;
    let (mut kept, mut lost) = (0, 0);
    for round in 0..times(4) {
        work(&mut load, &mut draws);
        load.freeze();
        let left = disk.cut(draws.below(u64::MAX));
        (kept, lost) = (kept + left.kept.0, lost + left.kept.1);
        kill(&mount);
        load.end();
        detach(&mount);
        disk.restart(left);
        if draws.below(3) == 0 {
            // Once more, while it recovers or looks at the files.
            mount = mount.into_dead().mount(&[]);
            std::thread::sleep(Duration::from_millis(draws.below(60)));
            let left = disk.cut(draws.below(u64::MAX));
            kill(&mount);
            detach(&mount);
            disk.restart(left);
        }
        mount = mount.into_dead().mount(&[]);
        compare(&mount, &mut load, &format!("{kind}, seed {seed}, cut {round}"));
    }
    let promises = load.promises.load(Ordering::Relaxed);
    println!("{kind}: {promises} promises; of the pages that were not flushed {kept} were kept, {lost} lost");
    assert!(promises > 0, "nothing was promised to anybody");
    mount.unmount();
    Ok(())
}

#[test]
fn on_ext4_power_cuts_cost_nothing_that_was_promised() -> Outcome {
    loses_power("ext4")
}

#[test]
fn on_xfs_power_cuts_cost_nothing_that_was_promised() -> Outcome {
    loses_power("xfs")
}

#[test]
fn on_btrfs_power_cuts_cost_nothing_that_was_promised() -> Outcome {
    loses_power("btrfs")
}

#[test]
fn on_btrfs_a_name_that_was_given_to_another_file_is_never_lost_to_both() -> Outcome {
    let mut disk = Disk::new("btrfs")?;
    let mut mount = Volume::at(&disk.path().join("volume")).mount(&[]);
    std::fs::create_dir(mount.at("directory"))?;
    let put = |mount: &Mount, name: &str, content: &str| {
        let file = std::fs::File::create(mount.at(name))?;
        std::io::Write::write_all(&mut &file, content.as_bytes())?;
        file.sync_all()
    };
    for round in 0..4 {
        // One that the filesystem has committed, under a name of one that was only synced.
        put(&mount, "directory/other", "other")?;
        rustix::fs::syncfs(std::fs::File::open(disk.path())?)?;
        let name = format!("name {round} {}", ["", &"long".repeat(50)][round % 2]);
        put(&mount, &name, "first")?;
        std::fs::rename(mount.at("directory/other"), mount.at(&name))?;
        put(&mount, "something else", "x")?;
        let left = disk.cut(round as u64);
        kill(&mount);
        detach(&mount);
        disk.restart(left);
        mount = mount.into_dead().mount(&[]);
        let found = std::fs::read_to_string(mount.at(&name)).map_err(|error| format!("{round}: {error}"))?;
        assert!(["first", "other"].contains(&&*found), "{round}: {found:?}");
    }
    mount.unmount();
    Ok(())
}
