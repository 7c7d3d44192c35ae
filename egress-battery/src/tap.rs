//! Sees what leaves: a packet socket on all devices of the node.
//!
//! A frame is the attempt's if the token is in it, under whatever header, or if it goes to the
//! address that the attempt aims at. On the pod's own device it is what was tried: the tap is
//! before the hook. On any other device it got through.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use crate::craft;

/// How an attempt's frames are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    pub token: Vec<u8>,
    pub aim: Option<IpAddr>,
    /// Indices of the pod's own devices.
    pub own: BTreeSet<u32>,
}

/// What the tap saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Frames that the pod sent.
    pub sent: u64,
    /// Frames on other devices, by index.
    pub elsewhere: BTreeMap<u32, u64>,
    /// Frames of anybody that the tap lost: what is not seen proves nothing then.
    pub lost: u32,
}

#[derive(Debug, Default)]
struct State {
    marks: Option<Marks>,
    seen: Seen,
    fence: u64,
}

/// Watches while it lives.
#[derive(Debug)]
pub struct Tap {
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    socket: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    fences: u64,
}

/// Bytes of frames that may wait to be looked at.
const BUFFER: usize = 32 << 20;
/// What comes after all that was sent before it.
const FENCE: &[u8] = b"sallyport-battery-fence-";
/// How long the tap may take to come to the fence.
const PATIENCE: Duration = Duration::from_secs(5);

impl Tap {
    /// Watches the devices of the calling thread's network namespace.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`.
    pub fn start() -> io::Result<Self> {
        let socket = Arc::new(craft::packet_socket(None)?);
        nix::sys::socket::setsockopt(&*socket, nix::sys::socket::sockopt::RcvBufForce, &BUFFER)?;
        let state = Arc::new(Mutex::new(State::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("tap".into()).spawn({
            let (socket, state, stop) =
                (Arc::clone(&socket), Arc::clone(&state), Arc::clone(&stop));
            move || watch(&socket, &state, &stop)
        })?;
        Ok(Self {
            state,
            stop,
            socket,
            thread: Some(thread),
            fences: 0,
        })
    }

    /// Looks for these from now on.
    pub fn look_for(&mut self, marks: Marks) -> io::Result<()> {
        // What is still under way is not this attempt's.
        self.fence()?;
        let mut state = lock(&self.state);
        state.marks = Some(marks);
        state.seen = Seen::default();
        drop(state);
        lost(&self.socket).map(drop)
    }

    /// What was seen since, after waiting until nothing new comes: at least `settle`, and longer for
    /// something that must come.
    pub fn seen(&mut self, settle: Duration, must_come: Duration) -> io::Result<Seen> {
        let start = Instant::now();
        let mut before = 0;
        loop {
            sleep(settle);
            self.fence()?;
            let sent = lock(&self.state).seen.sent;
            let waits = sent == 0 && start.elapsed() < must_come;
            if sent == before && !waits {
                break;
            }
            before = sent;
        }
        let mut state = lock(&self.state);
        state.marks = None;
        let mut seen = std::mem::take(&mut state.seen);
        drop(state);
        seen.lost = lost(&self.socket)?;
        Ok(seen)
    }

    /// Waits until the tap has looked at everything that came before now.
    fn fence(&mut self) -> io::Result<()> {
        self.fences += 1;
        let mut text = FENCE.to_vec();
        text.extend(self.fences.to_be_bytes());
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let to = socket.local_addr()?;
        let deadline = Instant::now() + PATIENCE;
        while lock(&self.state).fence < self.fences {
            if Instant::now() > deadline {
                return Err(io::Error::other(
                    "the tap saw nothing on the node's loopback device; it must be up",
                ));
            }
            socket.send_to(&text, to)?;
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only reads; a panic in it has been printed.
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch(socket: &OwnedFd, state: &Mutex<State>, stop: &AtomicBool) {
    let mut buffer = vec![0; 1 << 17];
    while !stop.load(Ordering::Relaxed) {
        // A timeout; it is there to look at `stop`.
        let Ok((device, leaving, frame)) = craft::receive(socket, &mut buffer) else {
            continue;
        };
        let mut state = lock(state);
        if let Some(number) = fence_in(frame) {
            state.fence = state.fence.max(number);
            continue;
        }
        let Some(marks) = &state.marks else { continue };
        if !is_marked(frame, marks) {
            continue;
        }
        if !marks.own.contains(&device) {
            *state.seen.elsewhere.entry(device).or_default() += 1;
        } else if !leaving {
            state.seen.sent += 1;
        }
    }
}

fn fence_in(frame: &[u8]) -> Option<u64> {
    let place = find(frame, FENCE)? + FENCE.len();
    let number = frame.get(place..place + 8)?;
    Some(u64::from_be_bytes(number.try_into().ok()?))
}

fn is_marked(frame: &[u8], marks: &Marks) -> bool {
    if find(frame, &marks.token).is_some() {
        return true;
    }
    match marks.aim {
        // As the destination, or as what ARP asks for: the node has begun to pass something on.
        Some(IpAddr::V4(aim)) => {
            let at = |place: usize| frame.get(place..place + 4) == Some(&aim.octets()[..]);
            match frame.get(12..14) {
                Some([0x08, 0x00]) => at(30),
                Some([0x08, 0x06]) => at(38),
                // A device without link addresses.
                _ => frame.first() == Some(&0x45) && at(16),
            }
        }
        Some(IpAddr::V6(aim)) => find(frame, &aim.octets()).is_some(),
        None => false,
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Frames that did not fit since the last question.
fn lost(socket: &OwnedFd) -> io::Result<u32> {
    // struct tpacket_stats: packets, drops.
    let mut stats = [0_u32; 2];
    let mut length = libc::socklen_t::try_from(size_of_val(&stats)).expect("a small struct");
    // SAFETY: the buffer is as long as is said.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            stats.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(stats[1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::craft::{Ends, protocol};

    fn marks(aim: &str) -> Marks {
        Marks {
            token: b"sp-0000-0001".to_vec(),
            aim: Some(aim.parse().unwrap()),
            own: BTreeSet::from([7]),
        }
    }

    fn frame(to: &str, payload: &[u8]) -> Vec<u8> {
        let to: IpAddr = to.parse().unwrap();
        let from = if to.is_ipv4() { "10.0.0.1" } else { "fd00::1" };
        let ends = Ends::new(from.parse().unwrap(), to).unwrap();
        let body = craft::packet(ends, protocol::UDP, &craft::udp(ends, (1, 2), payload));
        craft::frame([2; 6], [4; 6], craft::ethertype_of(&body), &body)
    }

    #[test]
    fn an_attempt_is_known_by_its_token_or_by_whom_it_aims_at() {
        for aim in ["203.0.113.7", "2001:db8:113::7"] {
            let marks = marks(aim);
            assert!(is_marked(&frame(aim, b"nothing"), &marks));
            assert!(is_marked(&frame("192.0.2.1", b"...sp-0000-0001"), &marks));
            assert!(!is_marked(&frame("192.0.2.1", b"sp-0000-0002"), &marks));
            assert!(!is_marked(&frame("2001:db8::1", b"sp-0000-0002"), &marks));
        }
        let bare = &frame("203.0.113.7", b"")[14..];
        assert!(is_marked(bare, &marks("203.0.113.7")));
        assert!(!is_marked(&[], &marks("203.0.113.7")));
    }
}
