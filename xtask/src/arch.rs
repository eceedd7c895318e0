//! Architectures that tracer is built for: this machine's, or another one's (`--arch`).

use std::{env::consts, fmt, str::FromStr};

/// By the name that Rust gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch(&'static str);

impl Arch {
    /// This machine's.
    pub const HOST: Self = Self(consts::ARCH);
    pub const AMD64: Self = Self("x86_64");
    pub const ARM64: Self = Self("aarch64");

    /// As Debian, Go and OCI call it.
    pub fn debian(self) -> &'static str {
        match self {
            Self::AMD64 => "amd64",
            Self::ARM64 => "arm64",
            Self(other) => other,
        }
    }

    /// As the GNU tools call it: in the names of cross compilers, and of the folders of libraries.
    pub fn gnu(self) -> String {
        format!("{}-linux-gnu", self.0)
    }

    /// What cargo is to build for; nothing says: for this machine.
    pub fn target(self) -> Option<String> {
        (self != Self::HOST).then(|| format!("{}-unknown-linux-gnu", self.0))
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.debian().fmt(f)
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::HOST, Self::AMD64, Self::ARM64]
            .into_iter()
            .find(|arch| [arch.0, arch.debian()].contains(&text))
            .ok_or_else(|| "neither amd64 nor arm64".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_goes_by_each_of_its_names() {
        assert_eq!("arm64".parse(), Ok(Arch::ARM64));
        assert_eq!("aarch64".parse(), Ok(Arch::ARM64));
        assert_eq!("x86_64".parse(), Ok(Arch::AMD64));
        assert_eq!(Arch::HOST.to_string().parse(), Ok(Arch::HOST));
        assert!("arm".parse::<Arch>().is_err());
    }

    #[test]
    fn only_for_another_machine_is_a_target_named() {
        assert_eq!(Arch::HOST.target(), None);
        let other = [Arch::AMD64, Arch::ARM64].map(|arch| arch.target().is_some());
        assert!(other.contains(&true), "{other:?}");
    }
}
