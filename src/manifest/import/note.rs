//! What is said about a manifest, with the place that it is said about.

use std::collections::HashSet;

use serde::Serialize;

use crate::config::Place;

/// How much a note matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// Good to know; requests get what they got before.
    Note,
    /// Something to complete or to decide.
    Warning,
    /// It changes what requests get, and the configuration does not have it.
    Unmapped,
}

impl Weight {
    /// The word that stands before the message.
    pub fn word(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Unmapped => "unmapped",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Note {
    /// How much it matters.
    pub weight: Weight,
    /// The file as it was named.
    pub file: String,
    /// The line from 1.
    pub line: u32,
    /// The column from 1.
    pub column: u32,
    /// The object, as in `Ingress team/api`; empty for a whole document.
    pub about: String,
    /// What was found, and what to do about it.
    pub message: String,
}

/// Where something was written, and in which object.
#[derive(Clone, Debug, Default)]
pub(super) struct Origin {
    pub file: String,
    pub place: Place,
    pub about: String,
}

impl Origin {
    /// Another place in the same object.
    pub(super) fn at(&self, place: Place) -> Self {
        Self { place, ..self.clone() }
    }
}

/// Everything that was found so far.
#[derive(Debug, Default)]
pub(super) struct Notes {
    list: Vec<Note>,
    said: HashSet<Note>,
}

impl Notes {
    pub(super) fn note(&mut self, origin: &Origin, message: impl Into<String>) {
        self.add(Weight::Note, origin, message.into());
    }

    pub(super) fn warn(&mut self, origin: &Origin, message: impl Into<String>) {
        self.add(Weight::Warning, origin, message.into());
    }

    pub(super) fn unmapped(&mut self, origin: &Origin, message: impl Into<String>) {
        self.add(Weight::Unmapped, origin, message.into());
    }

    pub(super) fn add(&mut self, weight: Weight, origin: &Origin, message: String) {
        let Origin { file, place, about } = origin.clone();
        let note = Note { weight, file, line: place.line, column: place.column, about, message };
        if self.said.insert(note.clone()) {
            self.list.push(note);
        }
    }

    /// In the order of the files, and of the places in them.
    pub(super) fn into_sorted(self, files: &[&str]) -> Vec<Note> {
        let mut notes = self.list;
        let file = |note: &Note| files.iter().position(|file| *file == note.file);
        notes.sort_by_key(|note| (file(note), note.line, note.column));
        notes
    }
}
