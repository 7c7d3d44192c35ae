//! Which agent writes the statuses: the one that holds the Lease.
//!
//! As elsewhere in Kubernetes, a Lease is lost when it was not renewed for its duration by the clock
//! of who looks: clocks need not agree. Agents look seldom, so one that finds the Lease run out by its
//! own wall clock looks again soon; it takes it only when it was not renewed in between.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Client, Error};
use tokio::time::{Instant, sleep};

use super::pace::draw;
use crate::api::status::LEASE_NAME;

/// How long a Lease lasts, and a report.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// A holder that has not renewed for this long has lost it.
    pub duration: Duration,
    /// The holder renews this often.
    pub renew: Duration,
    /// Others look this often; by the number of nodes without it.
    pub poll: Option<Duration>,
    /// A node's report that tells nothing new is written anew after half as long to half as long
    /// again, so that one that somebody deleted is back, and others know that there is an agent.
    pub refresh: Duration,
    /// A node that has not reported for so long has no agent.
    pub stale: Duration,
    /// A node that has just come has one by then.
    pub grace: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(30),
            renew: Duration::from_secs(10),
            poll: None,
            refresh: Duration::from_mins(10),
            stale: Duration::from_mins(45),
            grace: Duration::from_mins(2),
        }
    }
}

/// An agent that would hold the Lease.
#[derive(Debug)]
pub struct Candidate {
    leases: Api<Lease>,
    me: String,
    terms: Terms,
    /// Version that was seen last, and when it was seen first.
    seen: Option<(String, Instant)>,
    held: Option<Lease>,
}

/// How the Lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Mine, or nobody's.
    Free,
    /// Another's.
    Held,
    /// Another's, and it may have been lost: look again.
    Doubtful,
}

/// `unchanged`: how long this version has been seen.
fn standing(spec: &LeaseSpec, me: &str, unchanged: Duration, now: Timestamp) -> Standing {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.unwrap_or(0).max(1);
    let duration = Duration::from_secs(u64::from(seconds.unsigned_abs()));
    if holder.is_empty() || holder == me || unchanged >= duration {
        return Standing::Free;
    }
    let renewed = spec.renew_time.as_ref().map(|time| time.0);
    let age = renewed.map(|renewed| Duration::try_from(now.duration_since(renewed)));
    match age {
        Some(Ok(age)) if age < duration => Standing::Held,
        // Renewed in the future: the clocks don't agree, and it is being renewed.
        Some(Err(_)) => Standing::Held,
        _ => Standing::Doubtful,
    }
}

impl Candidate {
    pub fn new(client: Client, me: &str, terms: Terms) -> Self {
        Self {
            leases: Api::default_namespaced(client),
            me: me.to_owned(),
            terms,
            seen: None,
            held: None,
        }
    }

    /// Tries to get the Lease. None if it is ours now; else when to look again, where `poll` is how
    /// often to look.
    ///
    /// # Errors
    /// If the API server can't be asked.
    pub async fn attempt(&mut self, poll: Duration) -> Result<Option<Duration>, Error> {
        let again = poll.mul_f64(0.8 + draw() * 0.4);
        let Some(lease) = self.leases.get_opt(LEASE_NAME).await? else {
            return match self.create().await {
                Ok(lease) => {
                    self.held = Some(lease);
                    Ok(None)
                }
                Err(error) if is_conflict(&error) => Ok(Some(again)),
                Err(error) => Err(error),
            };
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => Instant::now(),
        };
        self.seen = Some((version, since));
        let spec = lease.spec.clone().unwrap_or_default();
        let unchanged = since.elapsed();
        match standing(&spec, &self.me, unchanged, Timestamp::now()) {
            Standing::Held => Ok(Some(again)),
            Standing::Doubtful => {
                let left = self.terms.duration.saturating_sub(unchanged);
                Ok(Some(
                    left.min(again) + self.terms.duration.mul_f64(draw() / 10.0),
                ))
            }
            Standing::Free => match self.write(lease).await {
                Ok(lease) => {
                    self.held = Some(lease);
                    Ok(None)
                }
                // Another was first.
                Err(error) if is_conflict(&error) => Ok(Some(again)),
                Err(error) => Err(error),
            },
        }
    }

    /// Renews it until it is lost.
    pub async fn hold(&mut self) {
        let mut renewed = Instant::now();
        // Others may take it after its duration; who holds it must know before.
        let deadline = self.terms.duration * 2 / 3;
        let mut wait = self.terms.renew;
        while let Some(lease) = self.held.clone() {
            sleep(wait).await;
            let answer = tokio::time::timeout(self.terms.renew, self.write(lease)).await;
            wait = match answer {
                Ok(Ok(lease)) => {
                    renewed = Instant::now();
                    self.held = Some(lease);
                    self.terms.renew
                }
                Ok(Err(error)) if is_conflict(&error) => match self.leases.get(LEASE_NAME).await {
                    // Our own write, whose answer was lost.
                    Ok(lease) if self.is_mine(&lease) => {
                        self.held = Some(lease);
                        self.terms.renew / 5
                    }
                    Ok(_) => break,
                    Err(_) => self.terms.renew / 5,
                },
                Ok(Err(_)) | Err(_) => self.terms.renew / 5,
            };
            if renewed.elapsed() >= deadline {
                break;
            }
        }
        self.held = None;
        self.seen = None;
    }

    /// Gives it back, so that another need not wait.
    ///
    /// # Errors
    /// If the API server can't be asked.
    pub async fn release(&mut self) -> Result<(), Error> {
        let Some(mut lease) = self.leases.get_opt(LEASE_NAME).await? else {
            return Ok(());
        };
        if !self.is_mine(&lease) {
            return Ok(());
        }
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
        }
        let parameters = PostParams::default();
        let replaced = self.leases.replace(LEASE_NAME, &parameters, &lease).await;
        replaced.map(drop)
    }

    /// Deletes it where no other agent holds it; one that wants it later makes it anew.
    ///
    /// # Errors
    /// If the API server can't be asked, or refuses.
    pub async fn withdraw(&self) -> Result<bool, Error> {
        let Some(lease) = self.leases.get_opt(LEASE_NAME).await? else {
            return Ok(false);
        };
        let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.as_ref());
        if holder.is_some_and(|holder| !holder.is_empty() && *holder != self.me) {
            return Ok(false);
        }
        let parameters = DeleteParams::default().preconditions(Preconditions {
            resource_version: lease.metadata.resource_version,
            uid: lease.metadata.uid,
        });
        match self.leases.delete(LEASE_NAME, &parameters).await {
            Ok(_) => Ok(true),
            // Another agent has just taken it.
            Err(error) if is_conflict(&error) || is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn is_mine(&self, lease: &Lease) -> bool {
        let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.as_ref());
        holder == Some(&self.me)
    }

    fn renewed(&self, old: &LeaseSpec) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let mine = old.holder_identity.as_ref() == Some(&self.me);
        let seconds = i32::try_from(self.terms.duration.as_secs().max(1)).unwrap_or(30);
        LeaseSpec {
            acquire_time: if mine {
                old.acquire_time.clone()
            } else {
                Some(now.clone())
            },
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: Some(seconds),
            lease_transitions: Some(old.lease_transitions.unwrap_or(0) + i32::from(!mine)),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }

    async fn create(&self) -> Result<Lease, Error> {
        let mut lease = Lease::default();
        lease.metadata.name = Some(LEASE_NAME.to_owned());
        lease.spec = Some(LeaseSpec {
            lease_transitions: Some(0),
            ..self.renewed(&LeaseSpec::default())
        });
        self.leases.create(&PostParams::default(), &lease).await
    }

    /// Writes it as ours, if nobody has written it since it was read.
    async fn write(&self, mut lease: Lease) -> Result<Lease, Error> {
        lease.spec = Some(self.renewed(&lease.spec.unwrap_or_default()));
        let parameters = PostParams::default();
        self.leases.replace(LEASE_NAME, &parameters, &lease).await
    }
}

fn is_conflict(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 409)
}

/// Whether there is no such object, or no such kind any more.
pub(super) fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_lost_by_the_clock_of_who_looks() {
        let now = Timestamp::now();
        let spec = |renewed: i64| LeaseSpec {
            holder_identity: Some("other".into()),
            lease_duration_seconds: Some(30),
            renew_time: Some(MicroTime(
                Timestamp::from_second(now.as_second() - renewed).unwrap(),
            )),
            ..LeaseSpec::default()
        };
        let at = |renewed, unchanged| {
            standing(&spec(renewed), "me", Duration::from_secs(unchanged), now)
        };
        assert_eq!(at(5, 0), Standing::Held);
        assert_eq!(at(-5000, 0), Standing::Held, "its clock is ahead");
        assert_eq!(at(5000, 0), Standing::Doubtful, "or its clock is behind");
        assert_eq!(at(5000, 29), Standing::Doubtful);
        assert_eq!(at(5, 30), Standing::Free, "whatever it says");
        let mine = LeaseSpec {
            holder_identity: Some("me".into()),
            ..spec(5)
        };
        assert_eq!(standing(&mine, "me", Duration::ZERO, now), Standing::Free);
        let nobody = LeaseSpec {
            holder_identity: Some(String::new()),
            ..spec(5)
        };
        assert_eq!(standing(&nobody, "me", Duration::ZERO, now), Standing::Free);
    }
}
