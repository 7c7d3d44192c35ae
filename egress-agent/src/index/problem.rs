//! What is wrong with an object, for its status and for the log.

use std::fmt;

use super::ObjectId;

/// What is wrong with one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub object: ObjectId,
    /// Path of the field, such as `spec.allow.cidrs[2].ports[0].endPort`; may be empty.
    pub field: String,
    /// Says what to do.
    pub reason: String,
    pub effect: Effect,
}

/// What became of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// It was not taken; its last good version stands, if there is one.
    Refused,
    /// It was taken without the part that `field` names, which would only have allowed more or
    /// has no bearing here.
    Ignored,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effect = match self.effect {
            Effect::Refused => "refused",
            Effect::Ignored => "ignored",
        };
        if self.field.is_empty() {
            write!(f, "{}: {} ({effect})", self.object, self.reason)
        } else {
            write!(
                f,
                "{}: {}: {} ({effect})",
                self.object, self.field, self.reason
            )
        }
    }
}

/// A finding about a field, before it is known of which object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub field: String,
    pub reason: String,
    pub effect: Effect,
}

impl Finding {
    pub fn refused(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
            effect: Effect::Refused,
        }
    }

    pub fn ignored(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
            effect: Effect::Ignored,
        }
    }

    pub fn of(self, object: &ObjectId) -> Problem {
        Problem {
            object: object.clone(),
            field: self.field,
            reason: self.reason,
            effect: self.effect,
        }
    }
}
