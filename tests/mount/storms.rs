//! Many threads at once, each seeing only what it may see.

use crate::harness::{Mount, Outcome, bytes};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

#[test]
fn numbers_of_removed_files_are_used_again_without_mixing_files_up() -> Outcome {
    let mount = Mount::new();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let mount = &mount;
            scope.spawn(move || {
                let mut held = Vec::new();
                for i in 0..400 {
                    let (path, seed) = (mount.at(format!("{thread}-{}", i % 3)), thread << 32 | i);
                    let content = bytes(seed, (i * 97 % 20_000) as usize);
                    fs::write(&path, &content).expect("written");
                    assert!(fs::read(&path).expect("read") == content, "{thread} {i}");
                    if i % 10 == 0 {
                        held.push((fs::File::open(&path).expect("opened"), content));
                    }
                    fs::remove_file(&path).expect("removed");
                    for (file, content) in held.iter().rev().take(3) {
                        assert!(crate::harness::content(file) == *content, "{thread} {i}");
                    }
                }
            });
        }
    });
    Ok(())
}

#[test]
fn renames_in_a_storm_lose_and_mix_up_nothing() -> Outcome {
    const FILES: u64 = 40;
    let mount = Mount::new();
    let name = |place: u64| {
        let long = if place.is_multiple_of(2) { String::new() } else { "long".repeat(60) };
        format!("d{}/{long}{place}", place % 3)
    };
    for directory in 0..3 {
        fs::create_dir(mount.at(format!("d{directory}")))?;
    }
    for i in 0..FILES {
        fs::write(mount.at(name(i)), bytes(i, 5000 + i as usize))?;
    }
    let seeds: Vec<Vec<u8>> = (0..FILES).map(|i| bytes(i, 5000 + i as usize)).collect();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (mount, name, seeds) = (&mount, &name, &seeds);
            scope.spawn(move || {
                // Each thread moves its own files between places that no other one uses, and looks at those of others.
                let places = |file: u64, round: u64| 1000 * (thread + 1) + (file * 7 + round) % 500;
                let mine: Vec<u64> = (0..FILES).filter(|file| file % 4 == thread).collect();
                let mut at: Vec<String> = mine.iter().map(|file| name(*file)).collect();
                for round in 0..40 {
                    for (index, file) in mine.iter().enumerate() {
                        let to = name(places(*file, round));
                        if fs::metadata(mount.at(&to)).is_ok() {
                            continue;
                        }
                        fs::rename(mount.at(&at[index]), mount.at(&to)).expect("renamed");
                        at[index] = to;
                    }
                    for entry in fs::read_dir(mount.at(format!("d{}", round % 3))).expect("listed") {
                        match fs::read(entry.expect("an entry").path()) {
                            Ok(content) => assert!(seeds.contains(&content)),
                            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
                        }
                    }
                }
                for (index, file) in mine.iter().enumerate() {
                    assert!(fs::read(mount.at(&at[index])).expect("read") == seeds[*file as usize]);
                }
            });
        }
    });
    let mount = mount.again(&[]);
    let mut found = Vec::new();
    for directory in 0..3 {
        for entry in fs::read_dir(mount.at(format!("d{directory}")))? {
            found.push(fs::read(entry?.path())?);
        }
    }
    found.sort();
    let mut expected = seeds;
    expected.sort();
    assert!(found == expected);
    Ok(())
}

#[test]
fn replacing_a_file_by_rename_shows_the_old_or_the_new_one() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), vec![0; 10_000])?;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let content = fs::read(mount.at("file")).expect("always there");
                    assert!(content.len() == 10_000 && content.iter().all(|byte| *byte == content[0]));
                }
            });
        }
        for round in 1..300 {
            fs::write(mount.at("new"), vec![round as u8; 10_000]).expect("written");
            fs::rename(mount.at("new"), mount.at("file")).expect("renamed");
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    Ok(())
}

#[test]
fn reads_writes_and_truncates_of_one_file_never_fail() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), vec![b'a'; 1 << 20])?;
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let mount = &mount;
            scope.spawn(move || {
                let file = fs::OpenOptions::new().read(true).write(true).open(mount.at("file")).expect("opened");
                let mut buffer = vec![0; 70_000];
                for i in 0..300_u64 {
                    let offset = (i * 7919 + thread * 104_729) % (1 << 20);
                    match (i + thread) % 4 {
                        0 => file.set_len(offset).expect("truncated"),
                        1 => file
                            .write_all_at(&buffer.iter().map(|_| b'a').collect::<Vec<_>>(), offset)
                            .expect("written"),
                        2 if i % 30 == 2 => file.sync_all().expect("synced"),
                        _ => {
                            let len = file.read_at(&mut buffer, offset).expect("read");
                            assert!(buffer[..len].iter().all(|byte| matches!(byte, 0 | b'a')));
                        }
                    }
                }
            });
        }
    });
    Ok(())
}

#[test]
fn files_are_closed_while_reads_and_writes_of_them_are_queued() -> Outcome {
    let mount = Mount::new();
    fs::write(mount.at("file"), vec![b'a'; 1 << 20])?;
    for round in 0..60 {
        let file = fs::OpenOptions::new().read(true).write(true).open(mount.at("file"))?;
        std::thread::scope(|scope| {
            for thread in 0..6_u64 {
                let file = file.try_clone().expect("another descriptor");
                scope.spawn(move || {
                    let mut buffer = vec![b'a'; 128 << 10];
                    let offset = (round * 7919 + thread * 104_729) % (1 << 19);
                    if thread % 2 == 0 {
                        file.write_all_at(&buffer, offset).expect("written");
                    } else {
                        file.read_exact_at(&mut buffer, offset).expect("read");
                        assert!(buffer.iter().all(|byte| *byte == b'a'));
                    }
                });
            }
            drop(file);
        });
    }
    assert!(fs::read(mount.at("file"))? == vec![b'a'; 1 << 20]);
    Ok(())
}

/// Directories of the store are swapped for links that lead outside, again and again, under work that goes on.
#[test]
fn links_planted_in_the_store_never_lead_outside() -> Outcome {
    let volume = crate::harness::Volume::with(&["--plain-names"]);
    let outside = volume.file("outside");
    fs::create_dir_all(outside.join("inner"))?;
    for name in ["file", "inner/file"] {
        fs::write(outside.join(name), "outside")?;
    }
    let mount = volume.mount(&[]);
    fs::create_dir_all(mount.at("d/inner"))?;
    let tree = mount.volume().path().join("tree");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swapping = scope.spawn(|| -> std::io::Result<u32> {
            std::os::unix::fs::symlink(&outside, tree.join("link"))?;
            let mut swaps = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                let (from, to) = (tree.join("link"), tree.join("d"));
                rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, exchange)?;
                swaps += 1;
            }
            Ok(swaps)
        });
        for round in 0..1500 {
            // Whatever comes of it: an error, or a change inside.
            let (file, inner) = (mount.at("d/file"), mount.at(format!("d/inner/{}", round % 3)));
            let _ = fs::write(&file, "inside");
            let _ = fs::write(mount.at("d/inner/file"), "inside");
            let _ = fs::create_dir(&inner);
            let _ = fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600));
            if let Ok(content) = fs::read(mount.at("d/file")) {
                assert!(content != b"outside");
            }
            let _ = fs::rename(&file, mount.at("moved"));
            let _ = fs::remove_file(mount.at("d/inner/file"));
            let _ = fs::remove_dir(&inner);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(swapping.join().expect("no panic").expect("swapped") > 100);
    });
    let mut found: Vec<_> = Vec::new();
    for directory in [outside.clone(), outside.join("inner")] {
        for entry in fs::read_dir(directory)? {
            found.push(entry?.file_name().into_string().expect("UTF-8"));
        }
    }
    found.sort();
    assert_eq!(found, ["file", "file", "inner"]);
    for name in ["file", "inner/file"] {
        assert_eq!(fs::read(outside.join(name))?, b"outside");
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(outside.join(name))?) & 0o777, 0o644);
    }
    Ok(())
}
