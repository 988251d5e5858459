//! What a check finds: of which kind, where, what it means and what can be done about it.

use crate::file::Damage;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is wrong. The names that scripts see are those of the variants in snake case: stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The journal is damaged: changes that were committed are lost.
    Journal,
    /// A directory has no id, or one that is none.
    DirectoryId,
    /// Two directories have the same id.
    DirectoryIdRepeated,
    /// An entry that kmsfs cannot have made.
    Foreign,
    /// A name that does not authenticate in its directory.
    Name,
    /// A long name whose other half is missing or damaged.
    LongName,
    /// A regular file without a header.
    Empty,
    /// A header that is malformed or does not authenticate.
    Header,
    /// A header that names a KEK which is none of the volume's.
    Kek,
    /// A header that is older than the volume accepts.
    Outdated,
    /// A file that is older than it was seen to be.
    RolledBack,
    /// The length of the stored file contradicts its header.
    Length,
    /// An envelope that the KMS finds wrong.
    Envelope,
    /// Tag blocks that do not authenticate, and the chunks that depend on them.
    TagBlock,
    /// Chunks that do not authenticate.
    Chunk,
    /// A symbolic link whose target is malformed, missing, or does not authenticate.
    LinkTarget,
    /// Extended attributes that do not authenticate.
    Xattr,
    /// Two files have the same id.
    FileIdRepeated,
    /// The backing filesystem does not give it.
    Io,
    /// The KMS refuses the version of the key that it needs.
    Refused,
    /// It was being written when the machine went down; the next mount sees to it.
    Unfinished,
    /// A file has more names than the tree: others lie outside it.
    LinkCount,
    /// The target of a symbolic link that is gone.
    OrphanTarget,
    /// The other half of a long name that is gone.
    OrphanSide,
    /// Something that was in the making, or was being removed.
    Leftover,
    /// What a crash left of a file that is empty now.
    SetAside,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something cannot be read, or is not what was written.
    Damage,
    /// It could not be checked.
    Unchecked,
    /// Harmless.
    Note,
}

impl Kind {
    /// The name that scripts see.
    pub fn name(self) -> String {
        // A variant without fields is written as its name.
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// How bad it is.
    pub fn severity(self) -> Severity {
        match self {
            Self::Io | Self::Refused => Severity::Unchecked,
            Self::Unfinished
            | Self::LinkCount
            | Self::OrphanTarget
            | Self::OrphanSide
            | Self::Leftover
            | Self::SetAside => Severity::Note,
            _ => Severity::Damage,
        }
    }

    /// Whether it is a regular file or a symbolic link that cannot be read, so that quarantine may take it away.
    pub fn is_lost_content(self) -> bool {
        matches!(
            self,
            Self::Empty
                | Self::Header
                | Self::Kek
                | Self::Outdated
                | Self::RolledBack
                | Self::Length
                | Self::Envelope
                | Self::TagBlock
                | Self::Chunk
                | Self::LinkTarget
        )
    }

    /// What it means, and what can be done about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Journal => "changes that were committed before a crash are lost; compare with a backup",
            Self::DirectoryId => {
                "no name in it can be read, nor anything be made in it; its files can be moved to another directory"
            }
            Self::DirectoryIdRepeated => "a copy of the other directory? keep one of the two",
            Self::Foreign => {
                "something put it there; it is shown under an escaped name, and can be removed or moved away"
            }
            Self::Name => "it is shown under an escaped name: give it a name of its own with mv, or remove it",
            Self::LongName => "it is left out or shown under an escaped name: open it by its name, or mv it to another",
            Self::Empty | Self::Header | Self::Length | Self::Kek | Self::Envelope => {
                "reading it fails with EIO: restore it from a backup, or remove it"
            }
            Self::Outdated => "somebody put an old copy back; reading it fails with EIO: restore it, or remove it",
            Self::RolledBack => {
                "an old copy was put back; reading it fails with EIO: restore the last one, or remove it, or, if it is \
                 meant to be this one: kmsfs rollback accept VOLUME --file STORED"
            }
            Self::TagBlock | Self::Chunk => {
                "reading these chunks fails with EIO, the others can be read: restore it from a backup, or remove it"
            }
            Self::LinkTarget => "reading the link fails with EIO: remove it, and make it anew",
            Self::Xattr => "they are left out, or reading them fails with EIO: set or remove them",
            Self::FileIdRepeated => "a restored copy beside the original? keep one of the two",
            Self::Io => "see what the kernel's log says of the disk, and as whom the check runs",
            Self::Refused => "it may be whole: enable the version of the key that it was wrapped with",
            Self::Unfinished => "nothing was promised of it: the next mount makes it empty or whole",
            Self::LinkCount => "another name of it lies outside the volume's tree; whoever has that can change it",
            Self::OrphanTarget | Self::OrphanSide | Self::Leftover => {
                "a crash left it; it takes space and does no harm"
            }
            Self::SetAside => "kept in case that it was whole once: move it to the tree to read it, or remove it",
        }
    }
}

impl From<&Damage> for Kind {
    fn from(damage: &Damage) -> Self {
        match damage {
            Damage::NoHeader => Self::Empty,
            Damage::Header(_) => Self::Header,
            Damage::Outdated => Self::Outdated,
            Damage::UnknownKek => Self::Kek,
            Damage::Envelope => Self::Envelope,
            Damage::Length => Self::Length,
            Damage::TagBlock(_) => Self::TagBlock,
            Damage::Chunk(_) => Self::Chunk,
            Damage::RolledBack => Self::RolledBack,
        }
    }
}

/// One thing that is wrong with one entry of the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// Where, below the volume's directory, in the names of the store.
    pub stored: Vec<u8>,
    /// Where in the tree, in plain names, if they could be read; names that cannot are as the mount shows them.
    pub path: Option<Vec<u8>>,
    /// Chunks, as ranges with both ends included.
    pub chunks: Vec<(u64, u64)>,
    /// Tag blocks.
    pub tag_blocks: Vec<u64>,
    /// Details, for people.
    pub detail: String,
}

impl Finding {
    /// For scripts.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "kind": self.kind,
            "severity": self.kind.severity(),
            "path": self.path.as_deref().map(printable),
            "stored": printable(&self.stored),
            "chunks": self.chunks,
            "tag_blocks": self.tag_blocks,
            "detail": self.detail,
            "advice": self.kind.advice(),
        })
    }

    fn add_chunk(&mut self, chunk: u64) {
        let at = self.chunks.partition_point(|(first, _)| *first <= chunk);
        if at > 0 && self.chunks[at - 1].1 >= chunk {
            return;
        }
        let joins_before = at > 0 && self.chunks[at - 1].1 + 1 == chunk;
        let joins_after = self.chunks.get(at).is_some_and(|(first, _)| chunk + 1 == *first);
        match (joins_before, joins_after) {
            (true, true) => self.chunks[at - 1].1 = self.chunks.remove(at).1,
            (true, false) => self.chunks[at - 1].1 = chunk,
            (false, true) => self.chunks[at].0 = chunk,
            (false, false) => self.chunks.insert(at, (chunk, chunk)),
        }
    }
}

/// A name or path for people and scripts: as it is if it is UTF-8 without control characters, else escaped.
pub fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(|c: char| c.is_control() || c == '\\') => text.to_owned(),
        Ok(text) if !text.contains(char::is_control) => text.replace('\\', "\\\\"),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// Everything that was found, once for each kind and place, in the order of the places.
#[derive(Clone, Debug, Default)]
pub struct Findings(BTreeMap<(Vec<u8>, Kind), Finding>);

impl Findings {
    /// Takes a finding; what is known of the same kind and place is added to.
    pub fn add(&mut self, kind: Kind, stored: &[u8], path: Option<&[u8]>, detail: impl Into<String>) -> &mut Finding {
        let found = self.0.entry((stored.to_vec(), kind)).or_insert_with(|| Finding {
            kind,
            stored: stored.to_vec(),
            path: None,
            chunks: Vec::new(),
            tag_blocks: Vec::new(),
            detail: detail.into(),
        });
        if found.path.is_none() {
            found.path = path.map(<[u8]>::to_vec);
        }
        found
    }

    /// Whether one of these kinds was found at a place, whose plain path becomes known with that if it is not empty.
    pub fn add_path(&mut self, stored: &[u8], path: &[u8], kinds: &[Kind]) -> bool {
        kinds.iter().any(|kind| match self.0.get_mut(&(stored.to_vec(), *kind)) {
            Some(found) if path.is_empty() || found.path.is_some() => true,
            Some(found) => {
                found.path = Some(path.to_vec());
                true
            }
            None => false,
        })
    }

    /// Says what a place is called in plain names.
    pub fn name(&mut self, stored: &[u8], path: &[u8]) {
        let kinds = (stored.to_vec(), Kind::Journal)..=(stored.to_vec(), Kind::Leftover);
        for (_, found) in self.0.range_mut(kinds) {
            found.path.get_or_insert_with(|| path.to_vec());
        }
    }

    /// Leaves what was found where it is stored, without what it is called in plain names.
    pub fn forget_names(&mut self) {
        self.0.values_mut().for_each(|found| found.path = None);
    }

    /// Takes damage of a file.
    pub fn add_damage(&mut self, damage: &Damage, stored: &[u8], path: Option<&[u8]>) {
        let detail = match damage {
            Damage::Chunk(_) => "chunks that do not authenticate".to_owned(),
            Damage::TagBlock(_) => "tag blocks that do not authenticate".to_owned(),
            other => other.to_string(),
        };
        let found = self.add(damage.into(), stored, path, detail);
        match damage {
            Damage::Chunk(chunk) => found.add_chunk(chunk.0),
            Damage::TagBlock(block) => {
                if let Err(at) = found.tag_blocks.binary_search(block) {
                    found.tag_blocks.insert(at, *block);
                }
            }
            _ => (),
        }
    }

    /// Takes findings of an earlier part of the same check.
    pub fn restore(&mut self, findings: Vec<Finding>) {
        self.0.extend(findings.into_iter().map(|finding| ((finding.stored.clone(), finding.kind), finding)));
    }

    /// All of them, in the order of the places.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.0.values()
    }

    /// How many there are that are so bad.
    pub fn count(&self, severity: Severity) -> usize {
        self.iter().filter(|finding| finding.kind.severity() == severity).count()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ChunkIndex;

    #[test]
    fn chunks_are_joined_to_ranges_in_whatever_order_they_are_found() {
        for order in [[1, 2, 3, 5, 9], [9, 3, 1, 5, 2], [2, 3, 1, 9, 5]] {
            let mut findings = Findings::default();
            for chunk in order.into_iter().chain([2]) {
                findings.add_damage(&Damage::Chunk(ChunkIndex(chunk)), b"tree/a", None);
            }
            findings.add_damage(&Damage::TagBlock(7), b"tree/a", Some(b"plain"));
            let all: Vec<_> = findings.iter().collect();
            assert_eq!(all.len(), 2, "one of each kind");
            assert_eq!(all[1].chunks, [(1, 3), (5, 5), (9, 9)]);
            assert_eq!(all[0].tag_blocks, [7]);
        }
    }

    #[test]
    fn names_are_printed_so_that_no_two_look_the_same() {
        for (name, printed) in
            [(&b"plain \xC3\xBC"[..], "plain \u{fc}"), (b"a\nb", "a\\nb"), (b"\xFF", "\\xff"), (b"a\\nb", "a\\\\nb")]
        {
            assert_eq!(printable(name), printed);
        }
    }
}
