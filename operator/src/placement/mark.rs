//! What the operator remembers on a Node, as the text of an annotation: `placed@2026-11-28T15:04:05Z`.

use k8s_openapi::jiff::Timestamp;
use std::{fmt, str::FromStr};

/// The last thing that the operator did to the label of a Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Set it.
    Placed(Timestamp),
    /// Took it away, because too few reached the relay.
    Unreachable(Timestamp),
    /// Took it away for another reason.
    Moved(Timestamp),
}

impl Mark {
    /// When.
    pub fn at(self) -> Timestamp {
        match self {
            Self::Placed(at) | Self::Unreachable(at) | Self::Moved(at) => at,
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Self::Placed(_) => "placed",
            Self::Unreachable(_) => "unreachable",
            Self::Moved(_) => "moved",
        };
        write!(f, "{word}@{:.0}", self.at())
    }
}

/// The text is none of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a word and a time, like placed@2026-11-28T15:04:05Z")]
pub struct NoMark;

impl FromStr for Mark {
    type Err = NoMark;

    fn from_str(text: &str) -> Result<Self, NoMark> {
        let (word, at) = text.split_once('@').ok_or(NoMark)?;
        let at = at.parse().map_err(|_| NoMark)?;
        match word {
            "placed" => Ok(Self::Placed(at)),
            "unreachable" => Ok(Self::Unreachable(at)),
            "moved" => Ok(Self::Moved(at)),
            _ => Err(NoMark),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_to_the_second() {
        let at = Timestamp::from_second(1_800_000_000).unwrap();
        for mark in [Mark::Placed(at), Mark::Unreachable(at), Mark::Moved(at)] {
            assert_eq!(mark.to_string().parse(), Ok(mark));
        }
        assert_eq!(Mark::Placed(at).to_string(), "placed@2027-01-15T08:00:00Z");
        for text in ["", "placed", "placed@", "placed@yesterday", "lost@2027-01-15T08:00:00Z"] {
            assert_eq!(text.parse::<Mark>(), Err(NoMark), "{text}");
        }
    }
}
