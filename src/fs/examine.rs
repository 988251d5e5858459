//! Authenticating what is stored, entry by entry, without looking anything up by name: what `fsck` and `scrub` do. Files
//! that are in use are looked at as they are in memory, so that nobody takes for damage what is being written.

use super::data::Stored;
use super::naming::Naming;
use super::*;
use crate::file::Damage;
use crate::format::PAGE;
use crate::store::StoreDir;

/// A file that is being examined; to be handed back with [`Fs::end_examination`].
pub struct Examination {
    ino: u64,
    file: Arc<File>,
}

impl Examination {
    /// The length of the plaintext now.
    pub fn len(&self) -> PlainOffset {
        self.file.len()
    }

    /// Whether the plaintext is empty.
    pub fn is_empty(&self) -> bool {
        self.file.is_empty()
    }
}

/// What an entry of the store is found to be.
pub enum Examined {
    /// A file; its content is still to be examined.
    File(Examination),
    /// It was being created when the machine went down, and will be empty.
    Unfinished,
    /// It cannot be opened.
    Damaged(Damage),
    /// Removed meanwhile, or no regular file any more.
    Gone,
}

/// The name that an entry of the store stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// This one.
    Name(Vec<u8>),
    /// None: it is kmsfs's own.
    Internal,
    /// It does not authenticate, and is shown under this one.
    Unreadable(Vec<u8>),
}

impl Fs {
    /// Opens a regular file of the store, whose path below the tree is `path`.
    ///
    /// # Errors
    /// [`Error::NeedKey`]; that the volume is locked; the store's.
    pub fn begin_examination(&self, directory: &dyn StoreDir, entry: &[u8], path: &[u8]) -> Result<Examined> {
        let keys = self.enter()?;
        match directory.stat(entry) {
            Ok(stat) if stat.kind == Kind::File => (),
            Ok(_) => return Ok(Examined::Gone),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Examined::Gone),
            Err(error) => return Err(error.into()),
        }
        // Whoever opens it meanwhile gets the same file, so it is opened for whatever they may want to do.
        let store = match directory.open_file(entry, !self.read_only) {
            Err(_) if !directory.stat(entry).is_ok_and(|stat| stat.kind == Kind::File) => return Ok(Examined::Gone),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => directory.open_file(entry, false)?,
            other => other?,
        };
        // Of what was opened: another one may have got the name, and even the number, since it was looked at.
        self.let_creators_finish(&store.inode().stat()?);
        let stat = store.inode().stat()?;
        let ino = stat.ino;
        let found = |file: Arc<File>| {
            self.restore_keys(&keys, &file)?;
            Ok(Examined::File(Examination { ino, file }))
        };
        if let Some(file) = self.open_file(ino) {
            return found(file);
        }
        let _alone = self.opening[ino as usize % OPENING].lock();
        if let Some(file) = self.open_file(ino) {
            return found(file);
        }
        match self.open_stored(&keys, ino, &|| path.to_vec(), &store)? {
            Stored::Whole(file) => {
                let file = Arc::new(*file);
                file.set_mtime(stat.mtime);
                let file = Arc::clone(&self.files.lock().entry(ino).or_insert_with(|| OpenFile::of(&file)).file);
                Ok(Examined::File(Examination { ino, file }))
            }
            Stored::Unfinished(_) => Ok(Examined::Unfinished),
            // A file whose last name is gone may have been given up in the middle of a change.
            Stored::Damaged(_) if store.inode().stat()?.nlink == 0 => Ok(Examined::Gone),
            Stored::Damaged(damage) => Ok(Examined::Damaged(damage)),
        }
    }

    /// Authenticates the next part of a file; see [`File::examine`].
    ///
    /// # Errors
    /// That the volume is locked; the store's.
    pub fn examine(
        &self,
        examination: &Examination,
        from: PlainOffset,
        to: PlainOffset,
        found: &mut dyn FnMut(Damage),
    ) -> Result<(u64, Option<PlainOffset>)> {
        let keys = self.enter()?;
        self.restore_keys(&keys, &examination.file)?;
        let mut damage = Vec::new();
        let step = examination.file.examine(from, to, &mut |found| damage.push(found))?;
        // Of a file whose last name is gone, changes may have been given up that were in memory only.
        if !damage.is_empty() && examination.file.store().inode().stat()?.nlink == 0 {
            return Ok((step.0, None));
        }
        damage.into_iter().for_each(found);
        Ok(step)
    }

    /// Ends an examination: a file that nobody else uses is let go of.
    pub fn end_examination(&self, examination: Examination) {
        let Examination { ino, file } = examination;
        let mut files = self.files.lock();
        // One in the table, and one here.
        let unused = |open: &OpenFile| open.handles == 0 && Arc::strong_count(&file) <= 2 && !file.waits_for_commit();
        if files.get(&ino).is_some_and(|open| Arc::ptr_eq(&open.file, &file) && unused(open)) {
            files.remove(&ino);
        }
    }

    /// Counts damage that an examination has found, and logs it.
    pub fn note_damage(&self, what: &str) {
        self.found_damage(|| what.to_owned());
    }

    /// The same for damage of a file.
    pub fn note_damaged_file(&self, ino: u64, damage: &Damage) {
        self.damaged_file(ino, damage);
    }

    /// Lets go of what examinations kept in memory and nobody else uses.
    pub fn end_examinations(&self) {
        self.drop_unused();
    }

    /// Looks at something, and once more while no names are made or removed if it does not look `good`: it may have
    /// been removed and made again in the middle.
    fn look_twice<T>(&self, look: impl Fn() -> T, good: impl Fn(&T) -> bool) -> T {
        let seen = look();
        if good(&seen) {
            return seen;
        }
        let _alone = self.namespace.write();
        look()
    }

    /// Whether the target of a symbolic link of the store authenticates; so does one that is gone.
    ///
    /// # Errors
    /// That the volume is locked; the store's.
    pub fn examine_link(&self, directory: &dyn StoreDir, entry: &[u8]) -> Result<bool> {
        let keys = self.enter()?;
        let whole = || Ok::<_, Error>(self.open_target(&keys, &directory.read_symlink(entry)?)?.is_some());
        let is_there = || directory.stat(entry).is_ok_and(|stat| stat.kind == Kind::Symlink);
        let look = || match whole() {
            // Its target may have been removed between the two.
            Ok(false) => Ok(!is_there()),
            Err(_) if !is_there() => Ok(true),
            other => other,
        };
        self.look_twice(look, |whole| matches!(whole, Ok(true)))
    }

    /// How many extended attributes of an entry of the store do not authenticate.
    ///
    /// # Errors
    /// That the volume is locked; the store's.
    pub fn examine_xattrs(&self, directory: &dyn StoreDir, entry: &[u8]) -> Result<usize> {
        let keys = self.enter()?;
        match directory.entry(entry).and_then(|inode| xattrs::damaged(&keys, &*inode)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            other => Ok(other?),
        }
    }

    /// The name that an entry of a directory of the store stands for.
    ///
    /// # Errors
    /// That the volume is locked; the store's.
    pub fn examine_name(&self, directory: &dyn StoreDir, entry: &[u8]) -> Result<Named> {
        let keys = self.enter()?;
        let look = || {
            let naming = match self.volume.record().plain_names {
                true => Naming::Plain,
                false => naming::read_dir_id(directory)?.map_or(Naming::Lost, Naming::Sealed),
            };
            Ok(match self.plain_name(&keys, naming, directory, entry) {
                Ok(Some(name)) => Named::Name(name),
                Ok(None) => Named::Internal,
                Err(_) if directory.stat(entry).is_err() => Named::Internal,
                Err(_) => Named::Unreadable(naming::escape(entry)),
            })
        };
        self.look_twice(look, |named| !matches!(named, Ok(Named::Unreadable(_))))
    }

    /// Waits until whoever creates something has finished, if what has these attributes may be a file that is just
    /// being created: it is there before its header is, and with its header before it is known to be open.
    pub(super) fn let_creators_finish(&self, stat: &Stat) {
        if stat.len.0 <= PAGE as u64 {
            drop(self.namespace.write());
        }
    }
}
