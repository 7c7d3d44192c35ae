//! The tables of iptables from before nftables, by the calls that `iptables-legacy` makes: nothing has
//! to be installed in the pod or on the node.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use crate::case::{Trouble, failed};
use crate::craft::{self, Shared};

/// `linux/netfilter_ipv4/ip_tables.h`; those of IPv6 are the same.
const SO_GET_INFO: i32 = 64;
const SO_GET_ENTRIES: i32 = 65;
const SO_SET_REPLACE: i32 = 64;
const SO_SET_ADD_COUNTERS: i32 = 65;

const NAME: usize = 32;
/// Places where a table may have rules.
const HOOKS: usize = 5;
/// Lengths of `struct ipt_getinfo`, `ipt_get_entries` and `xt_counters_info` before what follows them.
const INFO: usize = NAME + 4 * (1 + 2 * HOOKS + 2);
const ENTRIES: usize = 40;
/// Bytes and packets of a rule.
const COUNTER: usize = 16;
/// Of `struct xt_standard_target` and `xt_error_target`.
const STANDARD: usize = 40;
const ERROR: usize = 64;
const ACCEPT: i32 = -2;

/// What differs between the families.
struct Family {
    level: i32,
    socket: i32,
    names: &'static str,
    /// Length of an entry before its matches and its target, and where in it the lengths stand.
    entry: usize,
    offsets: usize,
}

const FAMILIES: [Family; 2] = [
    Family {
        level: libc::SOL_IP,
        socket: libc::AF_INET,
        names: "/proc/thread-self/net/ip_tables_names",
        entry: 112,
        offsets: 88,
    },
    Family {
        level: libc::SOL_IPV6,
        socket: libc::AF_INET6,
        names: "/proc/thread-self/net/ip6_tables_names",
        entry: 168,
        offsets: 140,
    },
];

/// A table as it is in the kernel.
struct Table<'a> {
    family: &'a Family,
    socket: &'a OwnedFd,
    name: &'a str,
    /// `valid_hooks`, then where each hook's rules begin and end, as the kernel tells it.
    hooks: Vec<u32>,
    /// Number of rules.
    number: u32,
    rules: Vec<u8>,
}

/// Does it while no table of this namespace has rules and all let through what no rule is about; says
/// which tables there were. All is put back.
pub(super) fn emptied(attempt: impl FnOnce(String) -> Result<(), Trouble>) -> Result<(), Trouble> {
    let mut there = Vec::new();
    for family in &FAMILIES {
        // Also the names tell that the kernel has such tables at all.
        if let Ok(names) = fs::read_to_string(family.names) {
            let socket = craft::socket(family.socket, libc::SOCK_RAW, libc::IPPROTO_RAW)
                .map_err(failed("open a raw socket"))?;
            there.push((family, socket, names));
        }
    }
    let mut tables = Vec::new();
    for (family, socket, names) in &there {
        for name in names.lines() {
            let table = Table::read(family, socket, name);
            tables.push(table.map_err(failed("read a table of iptables-legacy"))?);
        }
    }
    let mut done = Vec::new();
    let mut emptied = Ok(());
    for table in &tables {
        emptied = table.empty().map(|counters| done.push((table, counters)));
        if emptied.is_err() {
            break;
        }
    }
    let attempted = match emptied {
        Ok(()) => attempt(words(there.is_empty(), &tables)),
        Err(error) => Err(failed("empty a table of iptables-legacy")(error)),
    };
    // Each of them, whatever became of those before.
    let back = done
        .iter()
        .map(|(table, counters)| table.put_back(counters));
    let back: Vec<io::Result<()>> = back.collect();
    let back: io::Result<()> = back.into_iter().collect();
    back.map_err(failed("put back a table of iptables-legacy"))?;
    attempted
}

fn words(absent: bool, tables: &[Table<'_>]) -> String {
    if absent {
        return "nftables flushed; the kernel has no tables of iptables-legacy".to_owned();
    }
    if tables.is_empty() {
        return "nftables flushed; the pod has no tables of iptables-legacy".to_owned();
    }
    let names = tables.iter().map(|table| {
        let prefix = if table.family.socket == libc::AF_INET {
            "ip"
        } else {
            "ip6"
        };
        format!("{prefix} {}", table.name)
    });
    let names = names.collect::<Vec<_>>().join(", ");
    format!("nftables flushed, and of iptables-legacy: {names}")
}

impl<'a> Table<'a> {
    fn read(family: &'a Family, socket: &'a OwnedFd, name: &'a str) -> io::Result<Self> {
        let mut info = padded(name)?;
        info.resize(INFO, 0);
        craft::get_option(socket, (family.level, SO_GET_INFO), &mut info)?;
        let numbers = numbers(&info[NAME..]);
        let (hooks, rest) = numbers.split_at(1 + 2 * HOOKS);
        let (number, size) = (rest[0], rest[1]);
        let mut rules = padded(name)?;
        rules.extend(size.to_ne_bytes());
        rules.resize(ENTRIES + size as usize, 0);
        craft::get_option(socket, (family.level, SO_GET_ENTRIES), &mut rules)?;
        Ok(Self {
            family,
            socket,
            name,
            hooks: hooks.to_vec(),
            number,
            rules: rules.split_off(ENTRIES),
        })
    }

    /// As a table is that nobody has written to; the counters that its rules had.
    fn empty(&self) -> io::Result<Vec<u8>> {
        let valid = self.hooks[0];
        let standard = self.family.entry + STANDARD;
        let (mut rules, mut places) = (Vec::new(), Vec::new());
        for hook in 0..HOOKS {
            if valid >> hook & 1 == 1 {
                places.push(small(rules.len()));
                rules.extend(self.entry(STANDARD, "", &ACCEPT.to_ne_bytes()));
            } else {
                places.push(u32::MAX);
            }
        }
        let number = small(rules.len() / standard) + 1;
        rules.extend(self.entry(ERROR, "ERROR", b"ERROR"));
        let hooks = [&[valid], &places[..], &places[..]].concat();
        self.replace(&hooks, (number, self.number), &rules)
    }

    fn put_back(&self, counters: &[u8]) -> io::Result<()> {
        let valid = self.hooks[0].count_ones() + 1;
        self.replace(&self.hooks, (self.number, valid), &self.rules)?;
        let mut value = padded(self.name)?;
        value.extend(self.number.to_ne_bytes());
        value.resize(ENTRIES, 0);
        value.extend(counters);
        // SAFETY: names and numbers are no addresses.
        unsafe {
            craft::set_option(
                self.socket,
                (self.family.level, SO_SET_ADD_COUNTERS),
                &value,
            )
        }
    }

    /// An entry for every packet, with a target of this length: its name, and what it is told.
    fn entry(&self, target: usize, name: &str, told: &[u8]) -> Vec<u8> {
        let mut entry = vec![0; self.family.entry + target];
        let lengths = [self.family.entry, entry.len()];
        for (at, length) in lengths.into_iter().enumerate() {
            let at = self.family.offsets + 2 * at;
            entry[at..at + 2].copy_from_slice(&short(length).to_ne_bytes());
        }
        let at = self.family.entry;
        entry[at..at + 2].copy_from_slice(&short(target).to_ne_bytes());
        entry[at + 2..][..name.len()].copy_from_slice(name.as_bytes());
        entry[at + 32..][..told.len()].copy_from_slice(told);
        entry
    }

    /// Replaces the rules, of which there are `old`, by `new` ones; the counters of the old.
    fn replace(&self, hooks: &[u32], (new, old): (u32, u32), rules: &[u8]) -> io::Result<Vec<u8>> {
        let length = old as usize * COUNTER;
        let counters = Shared::new(length)?;
        let mut value = padded(self.name)?;
        let (valid, places) = hooks.split_at(1);
        for numbers in [valid, &[new, small(rules.len())], places, &[old]] {
            value.extend(numbers.iter().flat_map(|number| number.to_ne_bytes()));
        }
        value.extend(counters.address().to_ne_bytes());
        value.extend(rules);
        // SAFETY: the one address is of memory for as many counters as there are rules, which the
        // kernel checks, and it is written before the call returns.
        unsafe {
            craft::set_option(self.socket, (self.family.level, SO_SET_REPLACE), &value)?;
        }
        Ok(counters.read(length))
    }
}

fn padded(name: &str) -> io::Result<Vec<u8>> {
    let mut bytes = name.as_bytes().to_vec();
    if bytes.len() >= NAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    bytes.resize(NAME, 0);
    Ok(bytes)
}

fn numbers(bytes: &[u8]) -> Vec<u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| u32::from_ne_bytes(*word)).collect()
}

fn small(number: usize) -> u32 {
    u32::try_from(number).expect("a table's size")
}

fn short(number: usize) -> u16 {
    u16::try_from(number).expect("an entry's size")
}

#[cfg(test)]
mod tests {
    /// In a network namespace of its own.
    mod needs_root {
        use std::net::{SocketAddr, UdpSocket};
        use std::thread;

        use nix::sched::{CloneFlags, unshare};

        use super::super::*;

        const DROP: i32 = -1;

        /// Has `filter` drop what is sent, as its policy: the kernel makes the table when it is asked.
        fn shut(family: &Family, socket: &OwnedFd) {
            let table = Table::read(family, socket, "filter").unwrap();
            let output = table.hooks[1 + 3] as usize;
            let mut rules = table.rules.clone();
            let verdict = output + family.entry + 32;
            rules[verdict..verdict + 4].copy_from_slice(&DROP.to_ne_bytes());
            table
                .replace(&table.hooks, (table.number, table.number), &rules)
                .unwrap();
        }

        fn sends(to: SocketAddr) -> bool {
            let socket = UdpSocket::bind((to.ip(), 0)).unwrap();
            socket.send_to(b"?", to).is_ok()
        }

        #[test]
        fn tables_are_emptied_and_put_back() {
            let played = thread::spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                super::super::super::devices::ip("link set lo up\n").unwrap();
                let none = |text: String| {
                    assert!(text.contains("no tables"), "{text}");
                    Ok(())
                };
                emptied(none).unwrap();
                let loopback: [SocketAddr; 2] =
                    ["127.0.0.1:9".parse().unwrap(), "[::1]:9".parse().unwrap()];
                for (family, to) in FAMILIES.iter().zip(loopback) {
                    let there = fs::exists(family.names).unwrap();
                    if !there {
                        eprintln!("the kernel has no {}", family.names);
                        return;
                    }
                    let kind = libc::SOCK_RAW;
                    let socket = craft::socket(family.socket, kind, libc::IPPROTO_RAW).unwrap();
                    assert!(sends(to));
                    shut(family, &socket);
                    assert!(!sends(to));
                }
                let counted = |family| {
                    let socket =
                        craft::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW).unwrap();
                    Table::read(family, &socket, "filter").unwrap().rules
                };
                let before = counted(&FAMILIES[0]);
                emptied(|text| {
                    assert!(text.ends_with("ip filter, ip6 filter"), "{text}");
                    assert!(loopback.into_iter().all(sends));
                    Ok(())
                })
                .unwrap();
                assert_eq!(counted(&FAMILIES[0]), before, "rules and their counters");
                assert!(!loopback.into_iter().any(sends));
            });
            played.join().unwrap();
        }
    }
}
